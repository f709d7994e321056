"""The engine against plain calls of the real model: values, gradients, vision passes, for every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from batches import QUESTIONS, make_batch, plain_logps
from mllm_align.contract import View
from mllm_align.families import family_of, unwrap
from mllm_align.signals import AdaptersOff, EngineOptions, measure
from tiny import FAMILIES, tiny

# Ragged prompts and responses, several responses per image, two images in one prompt, a prompt without an image.
LAYOUTS = [((0,), (3, 6, 1)), ((1,), (5, 2)), ((2, 0), (4, 4)), ((), (7, 3))]
BOTH = pytest.mark.parametrize("packing", ["auto", "off"])


def with_lora(model: Any, *, projector: bool) -> Any:
    """LoRA on the language model with non-zero B, so that policy and reference differ."""
    family = family_of(model)
    targets = family.lora_targets(model, ["language"])
    save = [family.projector.rsplit(".", 1)[-1]] if projector else None
    peft = get_peft_model(model, LoraConfig(r=4, target_modules=targets, modules_to_save=save))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in peft.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(noise * (0.1 if "lora_" in name else 0.02))
    return peft


def loss_of(logps: dict[View, torch.Tensor]) -> torch.Tensor:
    """A function of all views with a different gradient for each."""
    return sum((number + 1.5) * (value / 10).tanh().sum() for number, value in enumerate(logps.values()))


@BOTH
@pytest.mark.parametrize("family", FAMILIES)
def test_logps_equal_the_plain_model(family: str, packing: str, pictures: list[Any]) -> None:
    model, processor = tiny(family)
    batch = make_batch(model, processor, pictures[:3], LAYOUTS)
    with torch.no_grad():
        signals, _ = measure(model, batch, tokens=True, options=EngineOptions(packing=packing))
        for branch in batch.branches:
            expected = plain_logps(model, processor, pictures, batch, branch, QUESTIONS[branch.prefix % 3])
            ragged = signals.token_logps[branch.view]
            torch.testing.assert_close(ragged.values, expected, atol=1e-4, rtol=0)
            assert ragged.row.tolist() == [branch.row] * branch.token_ids.numel()
            assert signals.logps[branch.view][branch.row].item() == pytest.approx(expected.sum().item(), abs=1e-4)
            assert signals.host_token_ids[branch.view][branch.row] == tuple(branch.token_ids.tolist())
            other = 1 - branch.row
            assert signals.host_token_ids[branch.view][other] == ()
            assert signals.num_tokens[branch.view][other] == 0
            assert signals.logps[branch.view][other] == 0


@BOTH
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_the_plain_model(family: str, packing: str, checkpointing: bool, pictures: list[Any]) -> None:
    model, processor = tiny(family)
    peft = with_lora(model, projector=True).train()
    batch = make_batch(model, processor, pictures[:3], LAYOUTS)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    signals, _ = measure(peft, batch, reference=AdaptersOff(), options=EngineOptions(packing, logits_chunk_size=5))
    loss_of(dict(signals.logps)).backward()
    ours = {name: p.grad.clone() for name, p in peft.named_parameters() if p.requires_grad}
    model.gradient_checkpointing_disable()
    peft.zero_grad()
    hf = unwrap(peft)
    plain: dict[View, torch.Tensor] = {view: torch.zeros(2) for view in batch.views}
    for branch in batch.branches:
        value = plain_logps(hf, processor, pictures, batch, branch, QUESTIONS[branch.prefix % 3]).sum()
        plain[branch.view] = plain[branch.view] + value * torch.eye(2)[branch.row]
    loss_of(plain).backward()
    assert ours
    for name, parameter in peft.named_parameters():
        if parameter.requires_grad:
            scale = parameter.grad.abs().max()
            assert scale > 0, name
            torch.testing.assert_close(ours[name] / scale, parameter.grad / scale, atol=1e-4, rtol=0, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_nf4_base_is_scored_as_the_plain_model_scores_it(family: str, pictures: list[Any]) -> None:
    model, processor = tiny(family, quantized=True)
    batch = make_batch(model, processor, pictures[:2], [((0,), (3, 5)), ((1,), (2, 4)), ((), (3,))])
    with torch.no_grad():
        signals, _ = measure(model, batch)
        for branch in batch.branches:
            expected = plain_logps(model, processor, pictures, batch, branch, QUESTIONS[branch.prefix % 3])
            assert signals.logps[branch.view][branch.row].item() == pytest.approx(expected.sum().item(), abs=1e-4)


def count_towers(model: Any) -> list[int]:
    """A list that grows by the number of leading entries of each vision pass."""
    family = family_of(model)
    calls: list[int] = []
    tower = family.module(unwrap(model), family.tower)
    layers = [m for n, m in tower.named_modules() if n.endswith(("layers.0", "layer.0", "blocks.0"))]
    layers[0].register_forward_hook(lambda module, args, output: calls.append(1))
    return calls


@pytest.mark.parametrize("family", FAMILIES)
def test_one_vision_pass_serves_all_views_of_policy_and_reference(family: str, pictures: list[Any]) -> None:
    model, processor = tiny(family)
    peft = with_lora(model, projector=False)
    batch = make_batch(model, processor, pictures[:3], LAYOUTS)
    calls = count_towers(peft)
    measure(peft, batch, reference=AdaptersOff())
    assert len(calls) == 1


def test_frozen_tower_runs_once_where_the_projector_trains(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    peft = with_lora(model, projector=True)
    batch = make_batch(model, processor, pictures[:3], LAYOUTS)
    calls = count_towers(peft)
    policy, reference = measure(peft, batch, reference=AdaptersOff())
    assert len(calls) == 1
    with torch.no_grad(), peft.disable_adapter():
        for branch in batch.branches:
            expected = plain_logps(
                unwrap(peft), processor, pictures, batch, branch, QUESTIONS[branch.prefix % 3]
            ).sum()
            assert reference.logps[branch.view][branch.row].item() == pytest.approx(expected.item(), abs=1e-4)
            assert policy.logps[branch.view][branch.row].item() != pytest.approx(expected.item(), abs=1e-2)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_policy_equals_reference_bit_for_bit_at_step_zero(family: str, pictures: list[Any]) -> None:
    model, processor = tiny(family)
    targets = family_of(model).lora_targets(model, ["language", "projector"])
    peft = get_peft_model(model, LoraConfig(r=4, target_modules=targets))
    batch = make_batch(model, processor, pictures[:3], LAYOUTS)
    policy, reference = measure(peft, batch, reference=AdaptersOff())
    for view in batch.views:
        assert torch.equal(policy.logps[view], reference.logps[view])
        assert not reference.logps[view].requires_grad


def test_rows_without_a_reference_are_not_scored_by_it(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    peft = with_lora(model, projector=False)
    batch = make_batch(model, processor, pictures[:3], LAYOUTS, reference_rows=(False, True))
    policy, reference = measure(peft, batch, reference=AdaptersOff())
    for branch in batch.branches:
        assert policy.num_tokens[branch.view][branch.row] == branch.token_ids.numel()
        expected = branch.token_ids.numel() if branch.row == 1 else 0
        assert reference.num_tokens[branch.view][branch.row] == expected


def test_limiting_tokens_per_forward_changes_nothing(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    batch = make_batch(model, processor, pictures[:3], LAYOUTS)
    with torch.no_grad():
        whole, _ = measure(model, batch)
        small, _ = measure(model, batch, options=EngineOptions(max_tokens_per_forward=30, least_fill=0.0))
    for view in batch.views:
        torch.testing.assert_close(whole.logps[view], small.logps[view], atol=1e-5, rtol=0)
