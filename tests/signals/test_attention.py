"""Attention with a mask for the last queries alone against attention with the whole mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.integrations.flex_attention as flex
from transformers import AutoModelForImageTextToText

from batches import QUESTIONS, make_batch, plain_logps
from mllm_align.families import family_of
from mllm_align.signals import FrozenCopy, measure
from mllm_align.signals.attention import SHARED_PREFIX, shared_prefix_attention, use_shared_prefix_attention
from mllm_align.signals.masks import Visibility, dense_mask
from tiny import FAMILIES, tiny


class Layer(torch.nn.Module):
    num_key_value_groups = 2
    is_causal = True


@pytest.mark.parametrize("plain", [0, 3, 5])
def test_values_and_gradients_equal_those_of_the_whole_mask(plain: int) -> None:
    segment = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 0, 0, 0, 0, 1, 2, 2, -1]])
    visible = Visibility(segment, torch.arange(10).expand(2, -1), None, plain)
    query = torch.randn(2, 4, 10, 8, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(2, 2, 10, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    full = dense_mask(visible, torch.float64)
    results = []
    for mask in (full, dense_mask(visible, torch.float64, first=plain)):
        out, weights = shared_prefix_attention(Layer(), query, key, value, mask, scaling=0.3)
        assert weights is None
        real = out * (segment >= 0)[:, :, None, None]
        results.append((real, *torch.autograd.grad((real * torch.arange(8)).sum(), (query, key, value))))
    for whole, cut in zip(*results, strict=True):
        torch.testing.assert_close(whole, cut, atol=1e-10, rtol=0)
    scores = torch.einsum("ghqd,ghkd->ghqk", query, key.repeat_interleave(2, 1)) * 0.3 + full
    slow = torch.einsum("ghqk,ghkd->gqhd", scores.softmax(-1), value.repeat_interleave(2, 1))
    torch.testing.assert_close(results[1][0], slow * (segment >= 0)[:, :, None, None], atol=1e-10, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_as_before_for_every_other_call(family: str, pictures: list[Any], tmp_path: Path) -> None:
    model, processor = tiny(family)
    batch = make_batch(model, processor, pictures[:2], [((0,), (6,)), ((), (4,))])
    with torch.no_grad():
        before = [
            plain_logps(model, processor, pictures, batch, branch, QUESTIONS[branch.prefix])
            for branch in batch.branches
        ]
        if not use_shared_prefix_attention(family_of(model), model):
            pytest.skip("this family has an attention of its own")
        text = model.config.get_text_config()
        assert text._attn_implementation == SHARED_PREFIX
        for branch, wanted in zip(batch.branches, before, strict=True):
            found = plain_logps(model, processor, pictures, batch, branch, QUESTIONS[branch.prefix])
            assert torch.equal(found, wanted)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert loaded.config.get_text_config()._attn_implementation == "sdpa"


def test_a_reference_with_another_back_end_is_refused(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    other, _ = tiny("llava")
    other.set_attn_implementation("eager")
    batch = make_batch(model, processor, pictures[:1], [((0,), (3, 2))])
    with pytest.raises(ValueError, match="attn_implementation"):
        measure(model, batch, reference=FrozenCopy(other))


@pytest.mark.parametrize("backend", ["flex_attention", "eager"])
def test_back_ends_score_alike(backend: str, pictures: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # Uncompiled, and without a graph: compiling takes half a minute, and on a CPU it has no backward pass.
    monkeypatch.setattr(flex, "WrappedFlexAttention", lambda training: lambda: flex.flex_attention)
    results = []
    for attention in ("sdpa", backend):
        model, processor = tiny("llava")
        model.config.text_config._attn_implementation = attention
        batch = make_batch(model, processor, pictures[:2], [((0,), (3, 6, 1)), ((1,), (5, 2)), ((), (7, 3))])
        with torch.no_grad():
            results.append(measure(model, batch)[0].logps)
        found = model.config.text_config._attn_implementation
        assert found == (SHARED_PREFIX if attention == "sdpa" else backend)
    for view, value in results[1].items():
        torch.testing.assert_close(value, results[0][view], atol=1e-4, rtol=0)
