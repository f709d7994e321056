"""The regions study: what it runs next, retrieval against a plain loop, its table, and one run from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import evaluation
import region_evaluation
import region_run
from mllm_align.data.world import correspondence_rows, document_rows
from mllm_align.families import family_of
from mllm_align.models import load_model
from mllm_align.objectives.load import objective_from
from mllm_align.vision import box_weights
from records import Records
from region_arms import (
    CONTRAST,
    CONTROL,
    HEAVY,
    LEARNING_RATES,
    NEEDS_TEACHER,
    NUM_ROWS,
    SEEDS,
    STEPS,
    TASKS,
    Run,
    objective_of,
)
from region_evaluation import region_retrieval, task_parts
from region_page import finished, table
from regions import chosen_rate, next_runs

ARMS = [CONTROL, HEAVY, CONTRAST]


def record(arm: str, rate: float, seed: int, validation: float = 0.5, values: Any = (1, 0, 1)) -> dict[str, Any]:
    size = (0, 0) if arm == "base" else (4, 24)
    part = {"values": list(values), "clusters": [0, 0, 1]}
    return {
        "run": Run("correspondence", "medium", arm, rate, seed, *size)._asdict(),
        "validation": validation,
        "test": {"accuracy": part, "retrieval": part},
    }


def upcoming(records: Records) -> list[tuple[str, float, int]]:
    return [
        (run.arm, run.learning_rate, run.seed) for run in next_runs(records, "correspondence", "medium", ARMS, 4, 24)
    ]


def test_rates_first_then_seeds_and_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    records = Records(path, Run)
    assert upcoming(records) == [(arm, rate, SEEDS[0]) for arm in ARMS for rate in LEARNING_RATES]
    for place, rate in enumerate(LEARNING_RATES):
        records.add(record(CONTROL, rate, SEEDS[0], validation=0.3 + 0.1 * place))
    assert chosen_rate(records, "correspondence", "medium", CONTROL, 4, 24) == LEARNING_RATES[1]
    again = Records(path, Run)
    assert upcoming(again)[: len(SEEDS) - 1] == [(CONTROL, LEARNING_RATES[1], seed) for seed in SEEDS[1:]]
    assert chosen_rate(again, "correspondence", "medium", CONTROL, 5, 24) is None  # of other steps nothing is known


def test_the_table_has_means_and_differences_to_both_controls(tmp_path: Path) -> None:
    records = Records(tmp_path / "runs.jsonl", Run)
    records.add(record("base", 0.0, 0, values=(0, 0, 1)))
    for seed in SEEDS:
        records.add(record(CONTROL, LEARNING_RATES[0], seed, values=(1, 0, 0)))
        records.add(record(CONTRAST, LEARNING_RATES[0], seed, values=(1, 1, 0)))
    records.add(record(HEAVY, LEARNING_RATES[0], SEEDS[0]))
    assert list(finished(records, "correspondence", "medium", 4, 24)) == ["base", CONTROL, CONTRAST]
    lines = table(records, "correspondence", "medium", 4, 24).splitlines()
    assert lines[0] == "| arm | accuracy | retrieval |"
    assert lines[2].startswith("| base | 33.3 (")
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["base", CONTROL, CONTRAST, f"{CONTRAST} - {CONTROL}"]
    assert lines[-1].startswith(f"| {CONTRAST} - {CONTROL} | +33.3 (")


def test_every_arm_is_an_objective_and_all_see_both_views() -> None:
    for task, rows in (("correspondence", correspondence_rows(1)), ("documents", document_rows(1))):
        for arm in TASKS[task].arms:
            if arm in NEEDS_TEACHER:
                with pytest.raises(ValueError, match="needs a document model: name it with --teacher"):
                    objective_of(task, arm)
                continue
            needs = objective_from(objective_of(task, arm)).needs_for("pairs")
            assert {str(view) for view in (*needs.views, *needs.optional)} == {
                "chosen|image",
                "rejected|contrast_image",
            }
            assert {"contrast_image", "chosen", "rejected", "objects"} <= set(rows[0])
            assert bool(needs.features) == arm.startswith(CONTRAST)
    heavy = [part["weight"] for part in map(dict, objective_of("correspondence", HEAVY)) if part.get("weight")]
    assert heavy[0] == 3.0


def in_order(clusters: list[str], values: list[float]) -> list[tuple[str, float]]:
    return sorted(zip(clusters, values, strict=True), key=lambda pair: pair[0])


@pytest.mark.parametrize("task", ["correspondence", "documents"])
def test_retrieval_is_that_of_a_loop(task: str) -> None:
    model, processor = load_model("demo-base", device="cpu")
    rows = TASKS[task].rows(3, 0, "test", TASKS[task].level)
    found = region_retrieval(model, processor, rows, TASKS[task].columns, batch_size=2)
    wanted, clusters = [], []
    for row in rows:
        pictures, objects = [], []
        for column, name in {"image": "objects", "contrast_image": "contrast_objects"}.items():
            if column in TASKS[task].columns:
                own = row["images"] if task == "correspondence" else [row[column]]
                objects += [(len(pictures) + each.get("image", 0), each) for each in row[name]]
                pictures += own
        vectors = []
        for place, each in objects:
            pixels = processor.image_processor(pictures[place], return_tensors="pt")["pixel_values"]
            grids = family_of(model).token_grids(
                {"pixel_values": pixels}, pictures[place].size, processor.image_processor, model.config
            )
            tokens = model.get_image_features(pixel_values=pixels).pooler_output[0].detach().double().numpy()
            box = torch.tensor([each["box"]], dtype=torch.float64)
            weights = box_weights(box, grids, len(tokens))[0].double().numpy()
            mean = weights @ tokens / weights.sum()
            vectors.append(mean / np.linalg.norm(mean))
        for number, (place, each) in enumerate(objects):
            others = [k for k, (where, _) in enumerate(objects) if where != place]
            same = [k for k in others if objects[k][1]["object_id"] == each["object_id"]]
            text = each.get("text")
            against = [k for k in others if k not in same and not (text and objects[k][1].get("text") == text)]
            if same and against:
                nearest = max(vectors[number] @ vectors[other] for other in against)
                wanted.append(float(max(vectors[number] @ vectors[other] for other in same) > nearest))
                clusters.append(row["id"])
    # A batch has its regions column by column.
    assert in_order(found.clusters, found.values) == in_order(clusters, wanted)
    assert 0 < sum(wanted) < len(wanted)


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region_run, "NUM_REPLAY", 24)
    for name in ("NUM_TEST", "NUM_VALIDATION", "NUM_RETRIEVED"):
        monkeypatch.setattr(region_evaluation, name, 4)
    for name in ("NUM_SCENES", "NUM_PAIRS", "NUM_POLLS"):
        monkeypatch.setattr(evaluation, name, 4)
    evaluation.test_items.cache_clear()


def test_from_training_to_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    run = Run("correspondence", "medium", CONTRAST, LEARNING_RATES[0], 0, 2, 24)
    first = region_run.carry_out(run, tmp_path / "cache", "cpu")
    evaluation.test_items.cache_clear()
    assert 0 <= first["validation"] <= 1
    assert len(first["test"]["accuracy"]["values"]) == 8
    assert len(first["test"]["both"]["values"]) == 4
    records = Records(tmp_path / "runs.jsonl", Run)
    for seed in SEEDS:
        records.add({**first, "run": run._replace(seed=seed)._asdict()})
    lines = table(records, "correspondence", "medium", 2, 24).splitlines()
    assert "world/in_distribution" in lines[0]
    assert len(lines) == 3


def test_documents_are_asked_by_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    model, processor = load_model("demo-base", device="cpu")
    parts = task_parts(model, processor, "documents", "small", "test")
    assert set(parts) == {"anls", "exact"}
    assert len(parts["anls"].values) == len(parts["anls"].clusters) == 4
    evaluation.test_items.cache_clear()


def test_the_page_has_the_tables_of_the_records() -> None:
    folder = Path(region_evaluation.__file__).parent
    records, page = Records(folder / "region_runs.jsonl", Run), (folder / "regions.md").read_text(encoding="utf-8")
    for task, level in (("correspondence", "medium"), ("documents", "small")):
        assert table(records, task, level, STEPS, NUM_ROWS) in page
        assert set(finished(records, task, level, STEPS, NUM_ROWS)) == {"base", *TASKS[task].arms}
    for level in ("quarter", "many"):
        assert table(records, "views", level, 150, NUM_ROWS) in page
