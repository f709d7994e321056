"""Models and rows are what the presets say."""

from __future__ import annotations

import math
from dataclasses import replace

import bitsandbytes
import pytest
import torch

from mllm_align.data.collator import AlignCollator
from mllm_align.objectives import DPO
from shapes import PRESETS, build_base, build_model, build_processor, preference_rows


def test_the_small_model_is_the_published_size() -> None:
    shape = PRESETS["small"]
    assert shape.image_tokens == PRESETS["llava-1.5-7b"].image_tokens == 576
    assert round(sum(p.numel() for p in build_model(shape).parameters()) / 1e6) == 24


def test_the_gpu_preset_is_llava_1_5_7b() -> None:
    shape = PRESETS["llava-1.5-7b"]
    with torch.device("meta"):
        model = build_base(replace(shape, device="meta", quantized=False))
    assert round(sum(p.numel() for p in model.parameters()) / 1e9, 2) == 7.06
    assert (shape.device, shape.dtype, shape.quantized, shape.checkpointing) == ("cuda", torch.bfloat16, True, True)


@pytest.mark.parametrize("preset", ["tiny", "tiny-nf4"])
def test_a_model_is_the_same_every_time_and_its_adapter_moves_it(preset: str) -> None:
    one, other = build_model(PRESETS[preset]), build_model(PRESETS[preset])
    assert one.training
    ids = torch.arange(10, 20)[None]
    with torch.no_grad():
        assert torch.equal(one(input_ids=ids).logits, other(input_ids=ids).logits)
        with other.disable_adapter():
            assert (one(input_ids=ids).logits - other(input_ids=ids).logits).abs().max() > 0.05
    trained = [name for name, p in one.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name and "language_model" in name for name in trained)


def test_only_the_language_model_is_quantized_and_it_stays_close() -> None:
    full, small = build_base(PRESETS["tiny"]), build_base(PRESETS["tiny-nf4"])
    quantized = {n for n, m in small.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}
    wanted = {n for n, m in full.model.language_model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert quantized == {f"model.language_model.{name}" for name in wanted}
    layer = small.get_submodule(min(quantized))
    weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    original = full.get_submodule(min(quantized)).weight
    assert layer.weight.quant_state.nested
    assert (weight.float() - original).norm() / original.norm() < 0.15


@pytest.mark.parametrize("length", PRESETS["tiny"].lengths)
def test_rows_have_exactly_the_lengths_asked_for(length: int) -> None:
    shape = PRESETS["tiny"]
    collate = AlignCollator(build_processor(shape), lambda source: DPO().needs, ("pixel_values",))
    batch = collate(preference_rows(shape, length))["batch"]
    assert len(batch) == len(batch.images) == len(batch.prefixes) == shape.batch
    assert [prefix.input_ids.numel() for prefix in batch.prefixes] == [shape.prompt_tokens + shape.image_tokens] * 2
    assert [branch.token_ids.numel() for branch in batch.branches] == [length] * 4
    unknown = 3
    assert not any((prefix.input_ids == unknown).any() for prefix in batch.prefixes)
    assert math.prod(batch.images[0]["pixel_values"].shape) == 3 * 56 * 56
