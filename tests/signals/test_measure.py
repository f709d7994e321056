"""The engine against plain calls of the real model: values, gradients, vision passes, for every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from batches import QUESTIONS, make_batch, plain_logps
from mllm_align.contract import Batch, View
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
    model.gradient_checkpointing_disable()
    check_gradients_are_those_of_plain_calls(peft, processor, pictures, batch)


def check_gradients_are_those_of_plain_calls(peft: Any, processor: Any, pictures: list[Any], batch: Batch) -> None:
    """What lies in the gradients now against one plain call per response."""
    ours = {name: p.grad.clone() for name, p in peft.named_parameters() if p.requires_grad}
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


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_through_an_nf4_base_equal_the_plain_model(family: str, pictures: list[Any]) -> None:
    model, processor = tiny(family, quantized=True)
    peft = with_lora(model, projector=True).train()
    batch = make_batch(model, processor, pictures[:3], LAYOUTS)
    signals, _ = measure(peft, batch, reference=AdaptersOff())
    loss_of(dict(signals.logps)).backward()
    check_gradients_are_those_of_plain_calls(peft, processor, pictures, batch)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("trains", ["nothing", "adapters", "head"])
def test_no_call_of_the_head_has_more_rows_than_the_chunk(trains: str, recompute: bool, pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    policy = model.requires_grad_(False) if trains == "nothing" else with_lora(model, projector=False)
    head = model.get_output_embeddings().requires_grad_(trains == "head")
    rows: list[int] = []
    head.register_forward_hook(lambda module, args, output: rows.append(output.numel() // output.shape[-1]))
    batch = make_batch(model, processor, pictures[:3], LAYOUTS)
    options = EngineOptions(logits_chunk_size=2, recompute_without_image=recompute)
    signals, _ = measure(policy, batch, reference=None if trains == "nothing" else AdaptersOff(), options=options)
    if trains != "nothing":
        loss_of(dict(signals.logps)).backward()
    assert max(rows) == 2
    assert sum(rows) >= sum(branch.token_ids.numel() for branch in batch.branches)


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


def test_a_prompt_with_all_its_responses_is_one_pass_whatever_the_limit(pictures: list[Any]) -> None:
    """The limit parts a batch between prompts: a pack that is longer by itself runs alone and whole."""
    model, processor = tiny("llava")
    batch = make_batch(model, processor, pictures[:2], [((0,), (20,) * 12), ((1,), (3,)), ((1,), (2, 2))])
    family, passes = family_of(model), []
    decoder = family.module(model, family.language_model)
    decoder.register_forward_hook(lambda module, args, output: passes.append(output.last_hidden_state.shape[:2]))
    with torch.no_grad():
        measure(model, batch, options=EngineOptions(max_tokens_per_forward=100, least_fill=0.0))
    alone, *others = passes
    assert alone[0] == 1
    assert alone[1] == batch.prefixes[0].input_ids.numel() + 12 * 19
    assert alone[1] > 100
    assert [rows * length <= 100 for rows, length in others] == [True] * len(others)
    assert sum(rows for rows, _ in others) == 2
