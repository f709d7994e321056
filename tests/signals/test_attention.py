"""Attention with a mask for the last queries alone against attention with the whole mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.integrations.flex_attention as flex
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
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


def masks_seen(monkeypatch: pytest.MonkeyPatch, model: Any) -> list[Any]:
    """What the decoder is given as `attention_mask` from here on, one entry per kind of layer."""
    family, seen = family_of(model), []
    plain = type(family).hidden_states

    def hidden_states(self: Any, model: Any, *, attention_mask: Any, **inputs: Any) -> Tensor:
        seen.extend(attention_mask.values() if isinstance(attention_mask, dict) else [attention_mask])
        return plain(self, model, attention_mask=attention_mask, **inputs)

    monkeypatch.setattr(type(family), "hidden_states", hidden_states)
    return seen


def logps_with(attention: str, family: str, pictures: list[Any]) -> Any:
    """Scores under a back end of the decoder's, and the back end that it has then."""
    model, processor = tiny(family)
    text = model.config.get_text_config()
    text._attn_implementation = attention
    batch = make_batch(model, processor, pictures[:2], [((0,), (3, 6, 1)), ((1,), (5, 2)), ((), (7, 3))])
    with torch.no_grad():
        logps = measure(model, batch)[0].logps
    return logps, text._attn_implementation


@pytest.mark.parametrize(("backend", "family"), [*(("flex_attention", name) for name in FAMILIES), ("eager", "llava")])
def test_back_ends_score_alike(
    backend: str, family: str, pictures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against sdpa; against eager where the scores are capped, which sdpa refuses."""
    # Uncompiled, and without a graph: compiling takes half a minute, and on a CPU it has no backward pass.
    monkeypatch.setattr(flex, "WrappedFlexAttention", lambda training: lambda: flex.flex_attention)
    model, _ = tiny(family)
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    plain, _ = logps_with("eager" if capped else "sdpa", family, pictures)
    seen = masks_seen(monkeypatch, model)
    found, kept = logps_with(backend, family, pictures)
    assert kept == backend
    assert seen
    assert {isinstance(mask, BlockMask) for mask in seen} == {backend == "flex_attention"}
    for view, value in found.items():
        torch.testing.assert_close(value, plain[view], atol=1e-4, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention has a backward pass on a GPU alone")
def test_gradients_of_flex_attention_equal_those_of_sdpa(pictures: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = masks_seen(monkeypatch, tiny("llava")[0])
    results = []
    for attention in ("sdpa", "flex_attention"):
        model, processor = tiny("llava")
        model.cuda().config.text_config._attn_implementation = attention
        batch = make_batch(model, processor, pictures[:2], [((0,), (3, 6, 1)), ((1,), (5, 2)), ((), (7, 3))])
        seen.clear()
        policy, _ = measure(model, batch)
        torch.stack([value.sum() for value in policy.logps.values()]).sum().backward()
        assert {isinstance(mask, BlockMask) for mask in seen} == {attention == "flex_attention"}
        grads = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
        results.append(grads)
    assert results[0].keys() == results[1].keys()
    for name, plain in results[0].items():
        assert (results[1][name] - plain).norm() <= 1e-2 * plain.norm() + 1e-5, name
