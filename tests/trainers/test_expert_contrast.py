"""A vision expert through the trainer: its adapter trains, with and without the model, is kept, and comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from mllm_align.data.images import load_image
from mllm_align.data.schema import parse_row
from mllm_align.models.export import merge_and_export
from mllm_align.objectives import ExpertContrast, NextToken, RegionContrast, Weighted
from mllm_align.vision import ObjectExpert, load_expert
from mllm_align.vision.teachers import load_teacher
from runs import gradients, make_trainer, picture, trained
from tiny import save_tiny, tiny
from tiny_teachers import save_teacher
from two_pictures import rows_of_two_pictures

EXPERT_FILES = {"object_expert.json", "object_expert.safetensors"}


@pytest.fixture(scope="module")
def radio(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_teacher("radio", tmp_path_factory.mktemp("expert") / "radio"))


def run(folder: Path, objective: Any, **changes: Any) -> Any:
    settings: dict[str, Any] = {"cache_dir": str(folder.parent / "cache"), "max_steps": 2}
    return make_trainer(folder, objective, rows_of_two_pictures(), **(settings | changes))


def adapter_of(trainer: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.objective.named_parameters() if "adapter" in n}


@pytest.mark.parametrize("cached", [False, True])
def test_with_a_frozen_model_the_adapter_alone_learns(radio: str, tmp_path: Path, cached: bool) -> None:
    """The paper's first stage; the guard lets it pass, and the LoRA beside it stays the identity."""
    trainer = run(tmp_path / "run", ExpertContrast.colva(radio), cache_gradients=cached)
    before, model = adapter_of(trainer), trained(trainer)
    trainer.train()
    assert all(not torch.equal(before[name], value) for name, value in adapter_of(trainer).items())
    assert model.keys() == trained(trainer).keys()
    assert all(torch.equal(model[name], value) for name, value in trained(trainer).items())
    log = [entry for entry in trainer.state.log_history if "loss/expert_contrast" in entry]
    assert len(log) == 2
    assert {"accuracy", "gap", "temperature"} <= set(log[0])


def test_the_guard_still_holds(radio: str, tmp_path: Path) -> None:
    """What trains and is dropped is not what stays: a term beside a kept adapter must move something itself."""
    beside = Weighted((ExpertContrast.colva(radio), 1.0), (RegionContrast(negatives="pair"), 1.0))
    with pytest.raises(ValueError, match="term 'region_contrast' reaches no parameter of the model"):
        run(tmp_path / "run", beside).train()
    frozen = ExpertContrast(radio, train_keys=False)
    trainer = run(tmp_path / "frozen", frozen)
    frozen.adapter.requires_grad_(False)
    with pytest.raises(ValueError, match="term 'expert_contrast' reaches no parameter of the model"):
        trainer.train()


def test_keys_train_the_projector_and_every_engine_agrees(radio: str, tmp_path: Path) -> None:
    def both() -> Weighted:
        return Weighted((ExpertContrast(radio, negatives="pair"), 1.0), (NextToken(matched=False), 1.0))

    once: dict[str, Any] = {"adapter": None, "max_steps": 1, "train_sampling_strategy": "sequential"}
    whole = gradients(run(tmp_path / "big", both(), per_device_train_batch_size=4, **once))
    assert any("projector" in name and gradient.any() for name, gradient in whole.items())
    assert sum("adapter" in name for name in whole) == 6
    ways: list[dict[str, Any]] = [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 4, "cache_gradients": True},
    ]
    for number, way in enumerate(ways):
        other = gradients(run(tmp_path / str(number), both(), **way, **once))
        assert other.keys() == whole.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(other[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_the_expert_is_kept_beside_the_adapter_and_comes_back(radio: str, tmp_path: Path) -> None:
    base = save_tiny("llava", tmp_path / "base")
    model, processor = tiny("llava")
    model.config._name_or_path = str(base)
    objective = Weighted((ExpertContrast.colva(radio), 1.0), (NextToken(matched=False), 1.0))
    trainer = run(tmp_path / "run", objective, model=model, processing_class=processor)
    trainer.train()
    trainer.save_model()
    kept = objective.parts[0].objective.adapter
    assert {file.name for file in (tmp_path / "run").iterdir()} >= EXPERT_FILES
    assert not any(
        "adapter.1" in n or "expert" in n for n in load_file(tmp_path / "run" / "adapter_model.safetensors")
    )
    for merge in (False, True):
        served = tmp_path / f"served {merge}"
        merge_and_export(tmp_path / "run", served, base=str(base), merge=merge, dtype="float32", device="cpu")
    row = parse_row(rows_of_two_pictures()[1])
    images = [load_image(image) for image in row.images]
    there = [[each for each in row.objects["image"] if each.image == n] for n in range(2)]
    before = ObjectExpert(load_teacher(objective.parts[0].objective.teacher), kept, pool_first=True)(images, there)
    for folder in ("run", "served False", "served True"):
        again = load_expert(tmp_path / folder)
        assert not any(parameter.requires_grad for parameter in again.parameters())
        for mine, found in zip(before, again(images, there), strict=True):
            assert torch.equal(mine.values, found.values)
            assert found.valid.all()
    # They are what the objective was given in training, up to the order of sums.
    batch = trainer.data_collator([trainer.train_dataset[1]])["batch"]
    (feature,) = [f for f in objective.needs.features if f.teacher]
    given = kept(batch.teacher_features[feature.name]).detach()
    torch.testing.assert_close(torch.cat([each.values for each in before]), given, atol=1e-5, rtol=1e-4)
    # PEFT alone loads the folder, with the logits that were trained.
    loaded = PeftModel.from_pretrained(tiny("llava")[0], str(tmp_path / "served False")).eval()
    inputs = processor(text="<image> What?", images=picture(5), return_tensors="pt")
    with torch.no_grad():
        mine, theirs = (each.eval()(**inputs).logits for each in (trainer.model, loaded))
    assert torch.equal(mine, theirs)


def test_a_resumed_run_has_its_adapter(radio: str, tmp_path: Path) -> None:
    way: dict[str, Any] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    whole = run(tmp_path / "run", ExpertContrast.colva(radio), **way)
    whole.train()
    assert {file.name for file in (tmp_path / "run" / "checkpoint-1").iterdir()} >= EXPERT_FILES
    other = run(tmp_path / "run", ExpertContrast.colva(radio), **way)
    other.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    for name, value in adapter_of(other).items():
        torch.testing.assert_close(value, adapter_of(whole)[name], atol=1e-6, rtol=1e-5, msg=name)


def test_what_cannot_be_kept_is_said_before_training(radio: str, tmp_path: Path) -> None:
    reader = str(save_teacher("layoutlmv3", tmp_path / "reader"))
    with pytest.raises(ValueError, match="ExpertContrast: an object expert is a vision model, not a DocumentTeacher"):
        run(tmp_path / "a", ExpertContrast(reader))
    two = Weighted((ExpertContrast(radio), 1.0), (ExpertContrast.colva(radio), 1.0))
    with pytest.raises(ValueError, match="keep 2 vision experts, one can be saved beside the model"):
        run(tmp_path / "b", two)
