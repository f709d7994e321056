"""References leave the policy as they found it, and say what is missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from batches import make_batch
from mllm_align.families import family_of
from mllm_align.signals import AdaptersOff, EngineOptions, FrozenCopy, NamedAdapter, Replay, measure
from mllm_align.signals.masks import in_dtype
from tiny import tiny

LAYOUT = [((0,), (3, 2)), ((), (2,))]


def lora(model: Any) -> LoraConfig:
    """LoRA on the language model whose B is not zero."""
    return LoraConfig(r=2, target_modules=family_of(model).lora_targets(model, ["language"]), init_lora_weights=False)


def test_frozen_adapter_tensors_stay_frozen(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    peft = get_peft_model(model, lora(model))
    frozen = next(p for n, p in peft.named_parameters() if "lora_A" in n)
    frozen.requires_grad_(False)
    before = {name: p.requires_grad for name, p in peft.named_parameters()}
    measure(peft, make_batch(model, processor, pictures[:1], LAYOUT), reference=AdaptersOff())
    assert {name: p.requires_grad for name, p in peft.named_parameters()} == before
    assert not frozen.requires_grad


def test_the_adapter_is_on_again_after_an_error(pictures: list[Any]) -> None:
    model, _ = tiny("llava")
    peft = get_peft_model(model, lora(model))
    before = {name: p.requires_grad for name, p in peft.named_parameters()}
    with pytest.raises(RuntimeError, match="inside"), AdaptersOff().on(peft):
        raise RuntimeError("inside")
    assert {name: p.requires_grad for name, p in peft.named_parameters()} == before


def test_named_adapter_and_frozen_copy_score_as_the_models_they_name(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    batch = make_batch(model, processor, pictures[:1], LAYOUT)
    with torch.no_grad():
        start, _ = measure(model, batch)
    copy, _ = tiny("llava")
    config = lora(model)
    peft = get_peft_model(model, config)
    peft.add_adapter("start", config)
    peft.set_adapter("start")
    with torch.no_grad():
        expected, _ = measure(peft, batch)
    peft.set_adapter("default")
    before = {name: p.requires_grad for name, p in peft.named_parameters()}
    policy, named = measure(peft, batch, reference=NamedAdapter("start"))
    _, copied = measure(peft, batch, reference=FrozenCopy(copy))
    for view in batch.views:
        torch.testing.assert_close(named.logps[view], expected.logps[view])
        torch.testing.assert_close(copied.logps[view], start.logps[view])
        assert not torch.allclose(policy.logps[view], named.logps[view])
    assert peft.active_adapter == "default"
    assert {name: p.requires_grad for name, p in peft.named_parameters()} == before


DTYPES = (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(("policy_dtype", "dtype"), [DTYPES, DTYPES[::-1]], ids=str)
@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_a_copy_in_another_precision_scores_as_it_does_alone(
    name: str, policy_dtype: torch.dtype, dtype: torch.dtype, pictures: list[Any]
) -> None:
    """Gemma's layers have a mask per kind."""
    (policy, processor), (copy, _) = tiny(name), tiny(name)
    policy.to(torch.bfloat16).to(policy_dtype)
    copy.to(torch.bfloat16).to(dtype)
    batch = make_batch(policy, processor, pictures[:1], LAYOUT)
    options = EngineOptions(least_fill=0.0)
    with torch.no_grad():
        alone, _ = measure(copy, batch, options=options)
        rounded, _ = measure(policy, batch, options=options)
        _, beside = measure(policy, batch, reference=FrozenCopy(copy), options=options)
    replayed = Replay(policy, batch, reference=FrozenCopy(copy), options=options).reference
    for view in batch.views:
        assert not torch.equal(alone.logps[view], rounded.logps[view])
        assert torch.equal(beside.logps[view], alone.logps[view])
        assert torch.equal(replayed.logps[view], alone.logps[view])


def test_a_mask_hides_the_same_in_another_precision_with_finite_numbers() -> None:
    for own, other in (DTYPES, DTYPES[::-1]):
        mask = torch.tensor([0.0, torch.finfo(own).min], dtype=own)
        found = in_dtype({"full": mask, "none": None}, other)
        assert found["full"].tolist() == [0.0, torch.finfo(other).min]
        assert found["full"].dtype == other
        assert found["none"] is None
        assert in_dtype(mask, own) is mask
    padding = torch.ones(2, dtype=torch.long)
    assert in_dtype(padding, torch.bfloat16) is padding


def test_a_reference_that_cannot_be_had_is_named(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    batch = make_batch(model, processor, pictures[:1], LAYOUT)
    with pytest.raises(ValueError, match="needs a PEFT model"):
        measure(model, batch, reference=AdaptersOff())
    peft = get_peft_model(model, lora(model))
    with pytest.raises(ValueError, match=r"no adapter 'old' .* loaded: default"):
        measure(peft, batch, reference=NamedAdapter("old"))
