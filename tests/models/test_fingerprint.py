"""Equal keys for equal numbers, another key for anything that could change one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mllm_align.families import family_of
from mllm_align.models.fingerprint import base_fingerprint, reference_fingerprint, weights_digest
from mllm_align.signals import AdaptersOff, FrozenCopy, NamedAdapter
from runs import lora
from tiny import tiny


def base_digest(model: Any, precision: str = "no", **kwargs: Any) -> str:
    return base_fingerprint(model, precision, **kwargs).digest


def adapters_digest(model: Any, name: str = "old") -> str:
    return reference_fingerprint(NamedAdapter(name), model, "no").digest


def with_adapters(name: str, **changes: Any) -> Any:
    model, _ = tiny("llava")
    targets = family_of(model).lora_targets(model, ["language"])
    settings = {"r": 4, "lora_alpha": 8, "target_modules": targets, "init_lora_weights": False} | changes
    torch.manual_seed(1)
    peft = get_peft_model(model, LoraConfig(**settings), adapter_name=name)
    peft.add_adapter("new", LoraConfig(**settings))
    return peft


def test_adapters_do_not_count_for_the_base() -> None:
    expected = base_digest(tiny("llava")[0])
    model, _ = tiny("llava")
    for settings in ({}, {"lora_scope": ["projector", "vision", "language"]}, {"train_projector": True}):
        peft = get_peft_model(tiny("llava")[0], lora(model, **settings))
        assert base_digest(peft) == expected
        for name, parameter in peft.named_parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.5)
                assert "lora_" in name or "modules_to_save" in name
        assert base_digest(peft) == expected
        assert reference_fingerprint(AdaptersOff(), peft, "no").digest == expected
    assert reference_fingerprint(FrozenCopy(tiny("llava")[0]), peft, "no").digest == expected


def test_attention_and_place_do_not_count(tmp_path: Path) -> None:
    model, _ = tiny("llava")
    expected = base_digest(model)
    model.set_attn_implementation("eager")
    model.name_or_path = str(tmp_path)
    found = base_fingerprint(model, "no")
    assert found.digest == expected
    assert found.name == str(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_bit_anywhere_counts(dtype: torch.dtype) -> None:
    model, _ = tiny("llava")
    model = model.to(dtype)
    expected = base_digest(model)
    generator = torch.Generator().manual_seed(0)
    for _, parameter in list(model.named_parameters())[::5]:
        flat = parameter.data.view(-1).view(torch.int16 if dtype == torch.bfloat16 else torch.int32)
        place = int(torch.randint(flat.numel(), (), generator=generator))
        flat[place] ^= 1
        assert base_digest(model) != expected
        flat[place] ^= 1
    assert base_digest(model) == expected


def test_swapped_values_with_the_same_sum_count() -> None:
    values = torch.randn(4096, 8)
    assert weights_digest([("w", values)]) != weights_digest([("w", values.flip(0))])
    assert weights_digest([("w", values)]) != weights_digest([("w", values.view(8, 4096))])
    assert weights_digest([("w", values)]) != weights_digest([("v", values)])
    odd = torch.ones(3, dtype=torch.bfloat16)
    assert weights_digest([("w", odd), ("b", values[0, 0])]) == weights_digest([("b", values[0, 0]), ("w", odd)])


def test_settings_count() -> None:
    model, _ = tiny("llava")
    found = {base_digest(model), base_digest(model, "bf16"), base_digest(tiny("llava", seed=1)[0])}
    found.add(base_digest(tiny("llava")[0].to(torch.float16)))
    model.config.vision_feature_layer = -1
    found.add(base_digest(model))
    model, _ = tiny("llava")
    model.config.text_config.rms_norm_eps = 1e-3
    found.add(base_digest(model))
    quantized, _ = tiny("llava", quantized=True)
    found.add(base_digest(quantized))
    assert len(found) == 7
    assert base_digest(tiny("llava", quantized=True)[0]) == base_digest(quantized)
    quantized.config.quantization_config.bnb_4bit_compute_dtype = torch.bfloat16
    assert base_digest(quantized) not in found


def test_named_adapters_by_weights_and_settings() -> None:
    model = with_adapters("old")
    expected = adapters_digest(model)
    assert expected != base_digest(model)
    assert adapters_digest(model, "new") != expected
    assert adapters_digest(with_adapters("older"), "older") == expected
    assert adapters_digest(with_adapters("old", lora_alpha=16)) != expected
    for name, parameter in model.named_parameters():
        if ".new." in name:
            parameter.data.add_(1)
    assert adapters_digest(model) == expected
    next(p for n, p in model.named_parameters() if ".old." in n).data.view(-1)[3] += 0.01
    assert adapters_digest(model) != expected
    frozen = reference_fingerprint(FrozenCopy(model), tiny("llava")[0], "no").digest
    assert frozen not in (base_digest(model), expected)


def test_the_vision_side_alone() -> None:
    model, _ = tiny("llava")
    whole, vision = base_digest(model), base_digest(model, vision_only=True)
    assert whole != vision
    model.model.language_model.norm.weight.data.add_(1)
    assert base_digest(model, vision_only=True) == vision
    assert base_digest(model) != whole
    model.model.multi_modal_projector.linear_1.bias.data[0] += 1
    assert base_digest(model, vision_only=True) != vision


def test_what_cannot_be_told_is_refused() -> None:
    model, _ = tiny("llava")
    with pytest.raises(ValueError, match="cannot tell what a object is"):
        reference_fingerprint(object(), model, "no")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no values in this process"):
        base_fingerprint(model.to("meta"), "no")


class Backwards(set[str]):
    """A set that iterates as another process might."""

    def __iter__(self) -> Iterator[str]:
        return reversed(sorted(super().__iter__()))


def test_the_order_of_a_set_does_not_count() -> None:
    model = with_adapters("old")
    expected = adapters_digest(model)
    targets = model.peft_config["old"].target_modules
    assert isinstance(targets, set)
    model.peft_config["old"].target_modules = Backwards(targets)
    assert list(model.peft_config["old"].to_dict()["target_modules"]) == sorted(targets, reverse=True)
    assert adapters_digest(model) == expected
    model.peft_config["old"].target_modules = set(sorted(targets)[1:])
    assert adapters_digest(model) != expected


def test_the_scales_of_4bit_weights_count() -> None:
    """A weight and its double have the same bits once they are packed."""
    model, _ = tiny("llava", quantized=True)
    weights = [p for p in model.parameters() if getattr(p, "quant_state", None) is not None]
    before = base_digest(model)
    for state in (weights[0].quant_state, weights[0].quant_state.state2):
        state.absmax = state.absmax * 2 if state.absmax.is_floating_point() else state.absmax ^ 1
        after = base_digest(model)
        assert after != before
        before = after
