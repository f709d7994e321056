"""Contrasts of images and texts in the trainer: what they declare is measured, cached gradients are the plain ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_align.contract import Objective
from mllm_align.objectives import TSVLC, AmclLike, CacrLike, CoCa, Cosmo, Symile
from runs import gradients, make_trainer, picture

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "amcl": lambda: AmclLike(heads=2, dim=4, temperature=0.5),
    "cacr": lambda: CacrLike(),
    "coca": lambda: CoCa(temperature=0.5),
    "cosmo": lambda: Cosmo(dim=8, temperature=0.5, interleaved=("documents",)),
    "symile": lambda: Symile(third="sign", temperature=0.5),
    "symile-n": lambda: Symile(third="sign", negatives="n", temperature=0.5, pooling="mean", dim=4),
    "tsvlc": lambda: TSVLC(temperature=0.5),
}


def rows_of(source: str) -> list[dict[str, Any]]:
    """Three rows of a source; how many texts are false and how many are true of an image differs."""
    told = [
        ("a circle", "stop", ["a square", "two circles"], [["one circle"]]),
        ("two stars", "way out", [], [["a pair of stars", "stars"]]),
        ("a blue square", "open", ["a red square"], [[]]),
    ]
    return [
        {
            "id": f"{source} {number}",
            "source": source,
            "image": picture(number),
            "prompt": "What is to be seen?",
            "caption": caption,
            "chosen": f"It is {caption}.",
            "sign": sign,
            "negatives": false,
            "positives": same,
        }
        for number, (caption, sign, false, same) in enumerate(told)
    ]


@pytest.mark.parametrize("name", ["amcl", "cacr", "symile", "tsvlc"])
def test_rows_need_no_prompt(name: str, tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key not in ("prompt", "chosen")} for row in rows_of("pairs")]
    trainer = make_trainer(tmp_path, OBJECTIVES[name](), rows, max_steps=1, per_device_train_batch_size=3)
    assert gradients(trainer)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_cached_gradients_are_the_plain_ones(name: str, tmp_path: Path) -> None:
    found = []
    for cached in (False, True):
        torch.manual_seed(0)
        objective = OBJECTIVES[name]()
        rows = rows_of("pairs") + (rows_of("documents") if name == "cosmo" else [])
        given: dict[str, Any] = {"per_device_train_batch_size": len(rows), "train_sampling_strategy": "sequential"}
        if cached:
            given |= {"cache_gradients": True, "max_tokens_per_forward": 60}
        trainer = make_trainer(tmp_path / str(cached), objective, rows, max_steps=1, **given)
        found.append((gradients(trainer), trainer.state.log_history[0]))
    (plain, line), (other, other_line) = found
    assert plain.keys() == other.keys()
    names = {key for key in line if key.startswith("loss/")}
    assert names == {key for key in other_line if key.startswith("loss/")}
    assert names
    for key in names:
        assert other_line[key] == pytest.approx(line[key], rel=1e-3, abs=1e-5)
    largest = max(value.abs().max().item() for value in plain.values())
    assert largest > 0
    for key, value in plain.items():
        torch.testing.assert_close(other[key], value, atol=1e-5 * largest, rtol=1e-4, msg=key)


def test_interleaved_rows_are_not_read_for_the_contrast(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "sign"} for row in rows_of("documents")]
    given = {"per_device_train_batch_size": 6, "train_sampling_strategy": "sequential"}
    trainer = make_trainer(tmp_path, OBJECTIVES["cosmo"](), rows_of("pairs") + rows, **given)
    batch = next(iter(trainer.get_train_dataloader()))["batch"]
    texts = [branch.row for branch in batch.branches if branch.view.image is None]
    assert texts == [0, 1, 2]


def test_a_misspelt_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="source 'document'"):
        make_trainer(tmp_path, Cosmo(dim=8, interleaved=("document",)), rows_of("documents"))
