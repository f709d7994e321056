"""A full copy of the vision tower beside LoRA: it learns, nothing else of the base does, and it comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn

from batches import QUESTIONS, make_batch, plain_logps, prompt_inputs
from mllm_align.families import Family, family_of, unwrap
from mllm_align.models import ModelArguments, load_model, lora_config, merge_and_export
from mllm_align.signals import AdaptersOff, measure
from mllm_align.signals.feature_cache import check_frozen_vision
from mllm_align.trainers.optimizer import BASE, PROJECTOR, VISION, part_of
from runs import lora
from tiny import FAMILIES, save_tiny, tiny

# A softmax does not see it: its gradient is rounding.
KEY_BIAS = "k_proj.bias"
LAYOUTS = [((0,), (3, 6)), ((1,), (5,)), ((2, 0), (4,))]


def whole_tower(name: str, *, quantized: bool = False, **changes: Any) -> tuple[Any, Any]:
    model, processor = tiny(name, quantized=quantized)
    torch.manual_seed(0)
    return get_peft_model(model, lora(model, **({"train_vision": True, "lora_dropout": 0.0} | changes))), processor


def tower_copies(peft: Any) -> dict[str, nn.Parameter]:
    """Trained parameters of the tower, by their names in the base."""
    family = family_of(unwrap(peft))
    trained = {name: p for name, p in unwrap(peft).named_parameters() if p.requires_grad}
    return {
        name.replace(".modules_to_save.default", ""): parameter
        for name, parameter in trained.items()
        if family.scope_of(name) == "vision"
    }


def base_weights(model: Any) -> dict[str, torch.Tensor]:
    marks = (".original_module", ".base_layer")
    return {
        name.replace(marks[0], "").replace(marks[1], ""): value
        for name, value in unwrap(model).state_dict().items()
        if "lora_" not in name and ".modules_to_save." not in name
    }


def seen(model: Any, processor: Any, pictures: list[Any]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**prompt_inputs(processor, "Which is red?", pictures[:2])).logits


def loss_of(policy: list[torch.Tensor], reference: list[torch.Tensor]) -> torch.Tensor:
    pairs = zip(policy, reference, strict=True)
    return torch.stack([(number + 1) * ((a - b) / 10).tanh().sum() for number, (a, b) in enumerate(pairs)]).sum()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_copies_are_the_tower_and_nothing_else(name: str) -> None:
    peft, _ = whole_tower(name, lora_scope=[])
    base, _ = tiny(name)
    family = family_of(base)
    own = {key for key, _ in base.named_parameters() if family.scope_of(key) == "vision"}
    assert own
    assert set(tower_copies(peft)) == own
    assert {key.split(".modules_to_save.")[0] for key, p in unwrap(peft).named_parameters() if p.requires_grad} == set(
        family.towers(base)
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_moves_the_tower_alone_and_the_reference_stays(name: str, pictures: list[Any]) -> None:
    """Gradients are those of plain calls, with and without checkpointing; without the adapter nothing has changed."""
    peft, processor = whole_tower(name)
    batch = make_batch(peft, processor, pictures[:3], LAYOUTS)
    views = list(batch.views)
    before = {key: value.clone() for key, value in base_weights(peft).items()}
    optimizer = torch.optim.SGD([p for p in peft.parameters() if p.requires_grad], lr=1e-3)
    for checkpointing in (False, True):
        peft.train()
        if checkpointing:
            peft.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy, reference = measure(peft, batch, reference=AdaptersOff())
        assert reference is not None
        loss_of([policy.logps[v] for v in views], [reference.logps[v] for v in views]).backward()
        unwrap(peft).gradient_checkpointing_disable()
        ours = {key: p.grad.clone() for key, p in peft.named_parameters() if p.grad is not None}
        optimizer.zero_grad()
        plain_loss(peft, tiny(name)[0], processor, pictures, batch).backward()
        compare(ours, peft)
        copies = tower_copies(peft)
        start = {key: p.detach().clone() for key, p in copies.items()}
        optimizer.step()
        optimizer.zero_grad()
        moved = {key for key, p in copies.items() if not torch.equal(p, start[key])}
        assert read_by(name, copies) - moved <= {key for key in copies if key.endswith(KEY_BIAS)}
        assert moved <= read_by(name, copies)
    after = base_weights(peft)
    assert after.keys() == before.keys() == tiny(name)[0].state_dict().keys()
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    expected = seen(tiny(name)[0], processor, pictures)
    assert not torch.equal(seen(peft, processor, pictures), expected)
    with peft.disable_adapter():
        assert torch.equal(seen(peft, processor, pictures), expected)


def plain_loss(peft: Any, base: Any, processor: Any, pictures: list[Any], batch: Any) -> torch.Tensor:
    """The same loss by one plain call per response, the reference by the base itself."""
    sides: list[list[torch.Tensor]] = []
    for model in (unwrap(peft), base):
        found = {view: torch.zeros(2) for view in batch.views}
        for branch in batch.branches:
            question = QUESTIONS[branch.prefix % 3]
            value = plain_logps(model, processor, pictures, batch, branch, question).sum()
            found[branch.view] = found[branch.view] + value * torch.eye(2)[branch.row]
        sides.append([found[view] for view in batch.views])
    return loss_of(sides[0], [value.detach() for value in sides[1]])


def compare(ours: dict[str, torch.Tensor], peft: Any) -> None:
    for key, parameter in peft.named_parameters():
        assert parameter.requires_grad or parameter.grad is None
        if parameter.grad is None:
            assert key not in ours or not ours[key].any(), key
            continue
        scale = parameter.grad.abs().max().clamp(min=1.0 if key.endswith(KEY_BIAS) else 1e-3)
        torch.testing.assert_close(ours[key] / scale, parameter.grad / scale, atol=1e-3, rtol=0, msg=key)


def read_by(name: str, copies: dict[str, nn.Parameter]) -> set[str]:
    """Without what these families do not read of their tower: its last layer, or the norm behind it."""
    unread = {"llava_onevision": ("post_layernorm",)}
    unread |= dict.fromkeys(("llava", "llava_next"), (".layers.1.", "post_layernorm"))
    return {key for key in copies if not any(part in key for part in unread.get(name, ()))}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_tower_comes_back_and_merges(name: str, tmp_path: Path, pictures: list[Any]) -> None:
    base = save_tiny(name, tmp_path / "base")
    model, processor = load_model(base)
    peft = get_peft_model(model, lora(model, train_vision=True))
    peft.peft_config["default"].base_model_name_or_path = str(base)
    shaken(peft)
    expected = seen(peft, processor, pictures)
    peft.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    again, _ = load_model(base, tmp_path / "adapter")
    assert torch.equal(seen(again, processor, pictures), expected)
    assert not torch.allclose(seen(load_model(base)[0], processor, pictures), expected, atol=1e-2)
    merged, _ = load_model(merge_and_export(tmp_path / "adapter", tmp_path / "merged", dtype="float32"))
    torch.testing.assert_close(seen(merged, processor, pictures), expected, rtol=1e-4, atol=1e-4)
    for key, parameter in tower_copies(peft).items():
        assert torch.equal(merged.get_parameter(key), parameter), key


def shaken(peft: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in tower_copies(peft).values():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(0.1 * noise * parameter.data.std().nan_to_num(1.0))


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_in_four_bits_the_tower_trains_in_its_own_precision(name: str, pictures: list[Any]) -> None:
    peft, processor = whole_tower(name, quantized=True, lora_scope=[])
    copies = tower_copies(peft)
    assert {parameter.dtype for parameter in copies.values()} == {torch.float32}
    batch = make_batch(peft, processor, pictures[:3], LAYOUTS)
    policy, _ = measure(peft.train(), batch)
    torch.stack([value.sum() for value in policy.logps.values()]).sum().backward()
    reached = {key for key, p in copies.items() if p.grad is not None and p.grad.any()}
    assert {key for key in read_by(name, copies) ^ reached if not key.endswith(KEY_BIAS)} == set()


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_image_features_are_not_kept(name: str) -> None:
    with pytest.raises(ValueError, match=r"modules_to_save.* trains, so that would change"):
        check_frozen_vision(whole_tower(name)[0])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scope", ["whole", "lora", "everything"])
def test_the_tower_has_a_learning_rate_group_of_its_own(name: str, scope: str) -> None:
    model, _ = tiny(name)
    family = family_of(model)
    settings: dict[str, Any] = {"lora_scope": ["language"], "train_vision": True, "train_projector": True}
    if scope == "lora":
        settings = {"lora_scope": ["language", "vision"], "train_projector": True}
    if scope != "everything":
        model = get_peft_model(model, lora(model, **settings))
    found: dict[str, set[str]] = {VISION: set(), PROJECTOR: set(), BASE: set()}
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            found[part_of(key, family)].add(key)
    assert all(found.values())
    projectors = family.projectors(unwrap(model))
    for key in set().union(*found.values()):
        path = key.removeprefix("base_model.model.")
        in_projector = path == "model.image_newline" or any(path.startswith(f"{each}.") for each in projectors)
        in_tower = path.startswith(f"{family.tower}.") and not in_projector
        assert key in found[PROJECTOR if in_projector else VISION if in_tower else BASE]


def test_parameters_that_no_module_holds_are_refused() -> None:
    model, _ = tiny("qwen2_vl")
    model.model.visual.class_embedding = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match=r"model\.visual\.class_embedding of Qwen2-VL lies beside the projector"):
        lora_config(model, ModelArguments(train_vision=True))
    inside, _ = tiny("llava")
    inside.model.vision_tower.class_embedding = nn.Parameter(torch.zeros(3))
    family: Family = family_of(inside)
    assert family.towers(inside) == ["model.vision_tower"]
