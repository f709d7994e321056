"""The kept expert: tokens by loops, what trains, what is saved and comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_align.contract import Teacher
from mllm_align.data.objects import ImageObject
from mllm_align.vision.object_expert import ObjectAdapter, ObjectExpert, load_expert, save_expert
from mllm_align.vision.teachers import load_teacher
from tiny_encoders import save_encoder
from tiny_teachers import save_teacher

BOXES = ((0.1, 0.2, 0.55, 0.9), (1.5, 0.0, 2.0, 1.0), (0.41, 0.43, 0.45, 0.44))
THERE = tuple(ImageObject(0, box) for box in BOXES)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(save_teacher("radio", tmp_path / "radio"))


def made(folder: str, **options: Any) -> ObjectExpert:
    torch.manual_seed(1)
    expert = load_teacher(Teacher(folder))
    return ObjectExpert(expert, ObjectAdapter(expert.width, 24), **options)


def adapted(adapter: ObjectAdapter, token: torch.Tensor) -> torch.Tensor:
    """Layer norm, linear, GELU, linear, in float64."""
    norm, first, _, second = adapter
    centred = token.double() - token.double().mean()
    scaled = centred / (token.double().var(unbiased=False) + norm.eps).sqrt()
    scaled = scaled * norm.weight.double() + norm.bias.double()
    hidden = first.weight.double() @ scaled + first.bias.double()
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return second.weight.double() @ hidden + second.bias.double()


@pytest.mark.parametrize("pool_first", [False, True])
def test_an_object_is_the_mean_of_what_it_covers(pool_first: bool, folder: str, pictures: list[Any]) -> None:
    expert = made(folder, pool_first=pool_first)
    (found, other) = expert([pictures[0], pictures[1]], [THERE, ()])
    assert other.values.shape == (0, 24)
    assert found.valid.tolist() == [True, False, True]
    assert not found.values[1].any()
    tokens, cells = expert.expert.patches([pictures[0]])
    side = cells.rows
    for number in (0, 2):
        box, total, area = BOXES[number], torch.zeros(24, dtype=torch.float64), 0.0
        pooled = torch.zeros(32, dtype=torch.float64)
        for row in range(side):
            for column in range(side):
                across = max(0.0, min(box[2] * side, column + 1) - max(box[0] * side, column))
                down = max(0.0, min(box[3] * side, row + 1) - max(box[1] * side, row))
                token = tokens[0, row * side + column]
                total += across * down * adapted(expert.adapter, token).detach()
                pooled += across * down * token.double()
                area += across * down
        wanted = adapted(expert.adapter, pooled / area).detach() if pool_first else total / area
        torch.testing.assert_close(found.values[number].double(), wanted, atol=1e-5, rtol=1e-4)


def test_the_adapter_alone_trains_and_is_saved(folder: str, tmp_path: Path, pictures: list[Any]) -> None:
    expert = made(folder)
    assert {name.split(".")[0] for name, _ in expert.named_parameters()} == {"adapter"}
    (before,) = expert([pictures[2]], [THERE])
    optimiser = torch.optim.SGD(expert.parameters(), lr=0.1)
    before.values.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in expert.parameters())
    assert not any(parameter.requires_grad for parameter in expert.expert.model.parameters())
    optimiser.step()
    (after,) = expert([pictures[2]], [THERE])
    assert not torch.equal(before.values, after.values)
    save_expert(expert, tmp_path / "run")
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [
        "object_expert.json",
        "object_expert.safetensors",
    ]
    again = load_expert(tmp_path / "run")
    (found,) = again([pictures[2]], [THERE])
    assert torch.equal(found.values, after.values)
    moved = save_teacher("radio", tmp_path / "moved")
    (found,) = load_expert(tmp_path / "run", expert=str(moved))([pictures[2]], [THERE])
    assert torch.equal(found.values, after.values)


def test_another_vision_model_is_refused(folder: str, tmp_path: Path) -> None:
    save_expert(made(folder), tmp_path / "run")
    save_teacher("radio", Path(folder), seed=5)
    with pytest.raises(ValueError, match=r"is not the one that the adapter in .* was trained with"):
        load_expert(tmp_path / "run")
    with pytest.raises(ValueError, match="no object expert in"):
        load_expert(tmp_path)
    for text in ("{}", "{", json.dumps({"widths": [32, 8]})):
        (tmp_path / "run" / "object_expert.json").write_text(text)
        with pytest.raises(ValueError, match="no object expert in"):
            load_expert(tmp_path / "run")


def test_what_does_not_fit(folder: str, tmp_path: Path) -> None:
    expert = load_teacher(Teacher(folder))
    with pytest.raises(ValueError, match="for features of width 8, the expert's are 32"):
        ObjectExpert(expert, ObjectAdapter(8, 24))
    reader = load_teacher(Teacher(str(save_teacher("layoutlmv3", tmp_path / "reader"))))
    with pytest.raises(ValueError, match="is a vision model, not a DocumentTeacher"):
        ObjectExpert(reader, ObjectAdapter(32, 24))
    clip = load_teacher(Teacher(str(save_encoder("clip", tmp_path / "clip"))))
    assert ObjectExpert(clip, ObjectAdapter(clip.width, 24)).adapter.widths == (64, 24)
