"""What no image token depends on does not train: found by one image, as the gradients of others have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from torch import nn

from batches import image_tensors
from mixed import OPTIONS, mixed_tiny, shake
from mllm_align.families import family_of, unwrap
from mllm_align.objectives import NextToken
from mllm_align.trainers.setup import apply_peft
from mllm_align.trainers.unread import freeze_unread
from runs import lora, make_trainer, pair_rows, trained
from tiny import FAMILIES, tiny
from tiny_encoders import save_encoder


def names(model: Any) -> set[str]:
    return {name for name, p in unwrap(model).named_parameters() if p.requires_grad}


def reached(model: Any, processor: Any, pictures: list[Any]) -> set[str]:
    """What a backward pass from the tokens of two pictures gives a gradient."""
    hf = unwrap(model)
    family = family_of(hf)
    images = [image_tensors(hf, processor, picture) for picture in pictures[:2]]
    torch.stack([each.square().sum() for each in family.encode_images(hf, images).tensors]).sum().backward()
    found = {name for name, p in hf.named_parameters() if p.grad is not None}
    hf.zero_grad()
    return found


@pytest.mark.parametrize("scope", ["whole", "lora", "everything"])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_trains_of_the_tower_is_what_gradients_reach(name: str, scope: str, pictures: list[Any]) -> None:
    model, processor = tiny(name)
    whole = {"train_vision": True, "lora_scope": ["language"]}
    if scope != "everything":
        model = get_peft_model(model, lora(model, **(whole if scope == "whole" else {"lora_scope": ["vision"]})))
    family, before = family_of(unwrap(model)), names(model)
    expected = {key for key in reached(model, processor, pictures) if family.scope_of(key) == "vision"}
    model.train()
    freeze_unread(model, processor)
    assert all(module.training for module in model.modules())
    after = names(model)
    assert {key for key in after if family.scope_of(key) == "vision"} == expected
    assert {key for key in before - after if family.scope_of(key) != "vision"} == set()


@pytest.mark.parametrize("kind", OPTIONS)
def test_of_an_encoder_that_trains_whole_the_mask_token_stays(kind: str, tmp_path: Path) -> None:
    encoder = {"model": str(save_encoder("dinov2", tmp_path)), "train": "full"}
    model, processor, mixed = mixed_tiny("llava", kind, encoder)
    shake(mixed)
    adapted = apply_peft(model, lora(model), processor)
    own = "model.vision_mixer.encoders.0.modules_to_save.default."
    trains = {key.removeprefix(own) for key in names(adapted) if key.startswith(own)}
    assert trains == {key for key, _ in mixed.seeing[0].original_module.named_parameters()} - {
        "model.embeddings.mask_token"
    }


def test_a_tower_that_nothing_reads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny("llava")
    config = lora(model, train_vision=True)
    monkeypatch.setattr(type(model.model.multi_modal_projector), "forward", lambda self, x: torch.zeros(1, 16, 64))
    with pytest.raises(ValueError, match=r"the vision tower \(train_vision, .* no image token depends on it"):
        apply_peft(model, config, processor)


def test_it_stays_so_when_a_run_is_resumed(tmp_path: Path) -> None:
    runs = []
    for steps in (1, 2):
        settings: dict[str, Any] = {"adapter": {"train_vision": True}, "weight_decay": 0.5}
        runs.append(
            make_trainer(
                tmp_path, NextToken(), pair_rows(4), max_steps=steps, save_strategy="steps", save_steps=1, **settings
            )
        )
        before = {name: p.detach().clone() for name, p in runs[-1].model.named_parameters()}
        runs[-1].train(resume_from_checkpoint=steps > 1)
        for name, parameter in runs[-1].model.named_parameters():
            if ".modules_to_save." in name and (".layers.1." in name or "post_layernorm" in name):
                assert not parameter.requires_grad, name
                assert torch.equal(parameter, before[name]), name
    assert trained(runs[0]).keys() == trained(runs[1]).keys()
    saved = tmp_path / "checkpoint-2" / "adapter_model.safetensors"
    assert any("post_layernorm" in name for name in load_file(saved))


def test_what_nothing_trains_of_is_not_looked_at() -> None:
    model, _ = tiny("llava")
    apply_peft(model, lora(model, train_projector=True), nn.Identity())
