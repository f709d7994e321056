"""Regions and their texts through the trainer: both sides learn, by every engine, beside next-token."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_align.data.mosaic import mosaics
from mllm_align.objectives import FILIP, SVLC, ClocLike, NextToken, RegionText, Weighted
from runs import gradients, make_trainer, picture

BOXES = ([0.05, 0.05, 0.45, 0.5], [0.5, 0.4, 0.95, 0.9], [0.1, 0.6, 0.4, 0.9])
NAMES = ("a red disc", "the blue square", "", "two stars", "a red disc", "a green one")


def rows() -> list[dict[str, Any]]:
    return [
        {
            "id": str(number),
            "image": picture(number),
            "prompt": "What is there?",
            "chosen": "A disc.",
            "objects": [
                {"box": box, "text": NAMES[(3 * number + place) % len(NAMES)]} for place, box in enumerate(BOXES)
            ]
            if number != 2
            else [],
        }
        for number in range(4)
    ]


def both(**options: Any) -> Weighted:
    torch.manual_seed(5)
    return Weighted((RegionText(dim=8, **options), 1.0), (NextToken(matched=False), 1.0))


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_it_trains_projector_language_model_and_heads(tmp_path: Path, loss: str) -> None:
    trainer = make_trainer(tmp_path, both(loss=loss), rows(), adapter=None, max_steps=4, learning_rate=1e-3)
    names = ("model.multi_modal_projector.linear_1", "model.language_model.layers.0.mlp.up_proj")
    before = [trainer.model.get_submodule(name).weight.detach().clone() for name in names]
    heads = [parameter.detach().clone() for parameter in trainer.objective.parameters()]
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss/region_text" in entry]
    assert len(log) == 4
    assert all(0 < entry["loss/region_text"] < 40 for entry in log)
    assert {"region_text/accuracy", "region_text/gap", "region_text/negatives"} <= set(log[0])
    for name, weight in zip(names, before, strict=True):
        assert not torch.equal(weight, trainer.model.get_submodule(name).weight)
    assert len(heads) == (3 if loss == "softmax" else 4)
    assert not any(torch.equal(one, other) for one, other in zip(heads, trainer.objective.parameters(), strict=True))


def test_cached_gradients_are_those_of_the_big_batch(tmp_path: Path) -> None:
    once: dict[str, Any] = {
        "adapter": None,
        "max_steps": 1,
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": 4,
    }
    whole = gradients(make_trainer(tmp_path / "big", both(), rows(), **once))
    ways: list[dict[str, Any]] = [
        {"cache_gradients": True, "max_tokens_per_forward": 64},
        {"packing": "off"},
        {"recompute_without_image": True},
    ]
    for number, way in enumerate(ways):
        other = gradients(make_trainer(tmp_path / str(number), both(), rows(), **way, **once))
        assert other.keys() == whole.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(other[name], gradient, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    "kind",
    [
        FILIP,
        partial(FILIP, regions=True),
        ClocLike,
        partial(ClocLike, prompted=True),
        SVLC,
        partial(SVLC, paraphrase_weight=1.0),
    ],
)
def test_tokens_and_negatives_are_replayed_too(tmp_path: Path, kind: Any) -> None:
    """All tokens of images and texts, and negatives: the plain step and cached gradients agree, on model and heads."""
    found = []
    data = rows()
    for row in data:
        for each in row["objects"]:
            each["negatives"] = ["no such thing", f"not {each['text']}"]
            each["positives"] = [f"the thing called {each['text']}"] if each["text"] else []
    data[0]["objects"].append({"box": [1.1, 0.1, 1.4, 0.5], "text": "nowhere"})
    for cached in (False, True):
        torch.manual_seed(5)
        trainer = make_trainer(
            tmp_path / str(cached),
            kind(dim=8),
            data,
            adapter=None,
            max_steps=1,
            train_sampling_strategy="sequential",
            per_device_train_batch_size=4,
            cache_gradients=cached,
        )
        found.append(gradients(trainer))
        (log,) = (entry for entry in trainer.state.log_history if "loss" in entry)
        assert 0 < log["loss"] < 40
        # One of ten lies outside; whole images and texts look at no objects.
        lost = {"objects/lost": 0.1} if kind is not FILIP else {}
        assert {name: value for name, value in log.items() if name.startswith("objects")} == pytest.approx(lost)
    whole, other = found
    assert whole.keys() == other.keys()
    assert any("multi_modal_projector" in name for name in whole)
    assert any("language_model" in name for name in whole)
    assert any("heads" in name for name in whole)
    for name, gradient in whole.items():
        torch.testing.assert_close(other[name], gradient, atol=1e-4, rtol=1e-3, msg=name)


def test_mosaics_are_drawn_with_the_seed_of_the_run_and_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def made(folder: str, **changes: Any) -> Any:
        captions = [{"image": picture(number), "chosen": f"picture {number}"} for number in range(8)]
        data = {"mosaics": mosaics(captions, side=56), "pairs": rows()}
        objective = Weighted((RegionText(dim=8), 1.0, "mosaics"), (NextToken(matched=False), 1.0, "pairs"))
        return make_trainer(
            tmp_path / folder,
            objective,
            data,
            adapter=None,
            check_data=True,
            max_steps=3,
            learning_rate=1e-3,
            per_device_train_batch_size=6,
            **changes,
        )

    def drawn(trainer: Any, epoch: int) -> list[str]:
        return [each["text"] for each in trainer.train_dataset[0, epoch]["objects"]]

    trainer = made("own")
    trainer.train()
    losses = [entry["loss/region_text"] for entry in trainer.state.log_history if "loss/region_text" in entry]
    assert len(losses) == 3
    assert max(losses) > 0
    assert drawn(trainer, 0) != drawn(trainer, 1)
    assert drawn(trainer, 0) == drawn(made("again"), 0) != drawn(made("other", data_seed=5), 0)
    with caplog.at_level(logging.WARNING):
        kept = made("kept", cache_pixels=True)
    assert drawn(kept, 0) == drawn(kept, 1)
    assert "which images are one mosaic is drawn once" in caplog.text
