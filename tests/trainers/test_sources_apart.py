"""Parts of an objective for rows of different sources, whose regions lie in one column, in every mixture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_align.objectives import SVLC, DocoLike, NextToken, RegionContrast, RegionText, Weighted
from mllm_align.signals import Replay, measure
from mllm_align.trainers.plain_step import wanted_of
from mllm_align.trainers.window import term_counts
from runs import make_trainer, picture
from tiny_teachers import save_teacher


def objects(count: int, images: int) -> list[dict[str, Any]]:
    return [
        {
            "box": [0.1, 0.2 * n, 0.6, 0.2 * n + 0.3],
            "text": f"word {n}",
            "image": image,
            "object_id": str(n),
            "negatives": [f"other {n}"],
        }
        for image in range(images)
        for n in range(count)
    ]


def sources() -> dict[str, list[dict[str, Any]]]:
    named = [
        {"id": f"n{k}", "image": picture(k + 20), "prompt": "x", "chosen": "y", "objects": objects(3, 1)}
        for k in range(2)
    ]
    pairs = [
        {
            "id": f"p{k}",
            "images": [picture(k), picture(k + 10)],
            "prompt": "x",
            "chosen": "y",
            "objects": objects(2, 2),
        }
        for k in range(2)
    ]
    return {"pairs": pairs, "named": named}


def doco(folder: Path) -> Any:
    return DocoLike(str(save_teacher("layoutlmv3", folder / "teacher")), dim=8)


PARTS: dict[str, Callable[[Path], Any]] = {
    "region_text": lambda folder: RegionText(dim=None),
    "svlc": lambda folder: SVLC(dim=None),
    "doco": doco,
}


@pytest.mark.parametrize("name", PARTS)
def test_each_part_sees_what_it_would_alone(name: str, tmp_path: Path) -> None:
    objective = Weighted(
        (PARTS[name](tmp_path), 1.0, "named"), (RegionContrast(), 1.0, "pairs"), (NextToken(matched=False), 1.0)
    )
    trainer = make_trainer(
        tmp_path / "run",
        objective,
        sources(),
        adapter={"lora_scope": ["language", "vision", "projector"]},
        cache_dir=str(tmp_path / "cache"),
    )
    trainer.teachers.compute(trainer.train_dataset, "train_dataset")
    rows = [trainer.train_dataset[number] for number in range(4)]
    found: dict[tuple[int, ...], dict[str, tuple[float, float]]] = {}
    for mixture in ((0, 1), (2, 3), (0, 1, 2, 3), (2, 0, 3, 1), (0, 2)):
        batch = trainer.data_collator([rows[number] for number in mixture])["batch"]
        with torch.no_grad():
            signals, _ = measure(trainer.model, batch, **wanted_of(trainer))
        outcome = objective(signals, None)
        found[mixture] = {term.name: (float(term.sum), float(term.count)) for term in outcome.terms}
        for feature, ragged in signals.features.items():
            assert len(ragged.values) == len(ragged.row) == len(signals.host_feature_rows[feature])
        counts = {key: float(count) for key, count in term_counts(objective, batch, 64).items()}
        assert counts == {key: count for key, (_, count) in found[mixture].items()}
        replayed = Replay(trainer.model, batch, **wanted_of(trainer))
        again = {term.name: float(term.sum) for term in objective(replayed.policy, None).terms}
        assert again == pytest.approx({key: value for key, (value, _) in found[mixture].items()}, abs=1e-4)
    whole = found[0, 1, 2, 3]
    assert {key: value[1] for key, value in found[2, 0, 3, 1].items()} == {key: v[1] for key, v in whole.items()}
    for key, value in whole.items():
        assert found[2, 0, 3, 1][key] == pytest.approx(value, rel=1e-4)
        if key != "next_token":
            alone = [found[0, 1][key], found[2, 3][key]]
            assert sorted(count for _, count in alone)[0] == 0
            assert max(alone, key=lambda pair: pair[1]) == pytest.approx(value, rel=1e-4)


def test_rows_without_ids_are_told_apart_by_what_is_on_them(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "id"} for row in sources()["pairs"]]
    other = [{**rows[0], "objects": objects(1, 2)}]
    trainer = make_trainer(tmp_path, RegionContrast(), rows, adapter=None)
    ids = trainer.data_collator([*rows, *other, rows[0]])["batch"].row_ids
    assert len(set(ids)) == 3
    assert ids[0] == ids[3]
