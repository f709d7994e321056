"""When prefixes are shared and when not, with the reason; windows shorter than the sequence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from batches import QUESTIONS, make_batch, plain_logps
from mllm_align.families import family_of
from mllm_align.signals import EngineOptions, measure
from mllm_align.signals.limits import can_share_prefixes, layer_windows
from tiny import tiny


def test_flash_attention_and_recurrent_layers_score_row_by_row() -> None:
    model, _ = tiny("llava")
    family = family_of(model)
    assert can_share_prefixes(family, model) == (True, "")
    model.config.text_config._attn_implementation = "flash_attention_2"
    shared, reason = can_share_prefixes(family, model)
    assert not shared
    assert "flash_attention_2" in reason
    model.config.text_config._attn_implementation = "sdpa"
    model.config.text_config.layer_types = ["linear_attention", "full_attention"]
    shared, reason = can_share_prefixes(family, model)
    assert not shared
    assert "recurrent" in reason


def test_windows_are_told_by_kind_of_layer() -> None:
    model, _ = tiny("llava")
    text = model.config.text_config
    assert layer_windows(model) == {"full_attention": None}
    text.sliding_window = 5
    assert layer_windows(model) == {"sliding_attention": 5}
    text.layer_types = ["sliding_attention", "full_attention"]
    assert layer_windows(model) == {"sliding_attention": 5, "full_attention": None}
    text.use_sliding_window = False
    assert layer_windows(model) == {"sliding_attention": None, "full_attention": None}


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_layers_that_slide_and_layers_that_do_not_get_a_mask_each(packing: str, pictures: list[Any]) -> None:
    llama, processor = tiny("llava")
    config = llama.config.to_dict()
    kinds = {"sliding_window": 9, "use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]}
    text = {**config["text_config"], "model_type": "qwen2", "architectures": None, **kinds}
    model = LlavaForConditionalGeneration(type(llama.config)(**{**config, "text_config": text})).eval()
    model.load_state_dict(llama.state_dict(), strict=False)
    batch = make_batch(model, processor, pictures[:2], [((0,), (3, 12)), ((1,), (14, 2)), ((), (4, 11))])
    with torch.no_grad():
        signals, _ = measure(model, batch, options=EngineOptions(packing=packing))
        found = {branch.view: signals.logps[branch.view][branch.row].item() for branch in batch.branches}
        for branch in batch.branches:
            plain = plain_logps(model, processor, pictures, batch, branch, QUESTIONS[branch.prefix % 3]).sum().item()
            assert found[branch.view] == pytest.approx(plain, abs=1e-4)
        # The windows matter here at all.
        model.config.text_config.sliding_window = 4096
        wide, _ = measure(model, batch, options=EngineOptions(packing=packing))
    assert any(abs(wide.logps[b.view][b.row].item() - found[b.view]) > 1e-3 for b in batch.branches)


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_a_window_shorter_than_the_sequence_is_kept(packing: str, pictures: list[Any]) -> None:
    llama, processor = tiny("llava")
    config = llama.config.to_dict()
    text = {**config["text_config"], "model_type": "mistral", "sliding_window": 9, "architectures": None}
    text.pop("layer_types", None)
    config = type(llama.config)(**{**config, "text_config": text})
    model = LlavaForConditionalGeneration(config).eval()
    model.load_state_dict(llama.state_dict())
    assert layer_windows(model) == {"sliding_attention": 9}
    batch = make_batch(model, processor, pictures[:2], [((0,), (3, 12)), ((1,), (14, 2)), ((), (4, 11))])
    with torch.no_grad():
        signals, _ = measure(model, batch, options=EngineOptions(packing=packing))
        for branch in batch.branches:
            question = QUESTIONS[branch.prefix % 3]
            expected = plain_logps(model, processor, pictures, batch, branch, question).sum().item()
            unlimited = plain_logps(llama, processor, pictures, batch, branch, question).sum().item()
            assert signals.logps[branch.view][branch.row].item() == pytest.approx(expected, abs=1e-4)
            assert abs(expected - unlimited) > 1e-3
