"""The study: its statistics, what it runs next, what a kill leaves, and one run of an arm from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evaluation
import one_run
from conditions import CONDITIONS, mirrored, replay_rows
from intervals import Columns, interval, paired_interval
from methods import CONTROL, METHODS, Arm, arms
from mllm_align.objectives.load import objective_from
from page import finished, write_page
from records import LEARNING_RATES, SEEDS, Records, chosen_rate, run_of
from study import next_runs


def columns(values: Any, clusters: list[str], base: Any = None) -> Columns:
    array = np.asarray(values, dtype=float)
    return Columns(array, np.ones_like(array) if base is None else np.asarray(base, dtype=float), clusters)


def test_values_are_ratios_averaged_over_seeds() -> None:
    arm = columns([[1, 0, 1, 1], [0, 0, 1, 1]], ["a", "a", "b", "c"])
    other = columns([[0, 0, 1, 1], [0, 0, 0, 1]], ["a", "a", "b", "c"])
    assert interval(arm).value == pytest.approx(5 / 8)
    assert paired_interval(arm, other).value == pytest.approx(2 / 8)
    chair = columns([[1, 0], [2, 1]], ["a", "b"], [[4, 3], [3, 2]])
    assert interval(chair).value == pytest.approx(4 / 12)
    assert interval(arm).low <= interval(arm).value <= interval(arm).high


def test_no_difference_is_found_where_there_is_none_and_one_where_there_is() -> None:
    rng = np.random.default_rng(0)
    names = [str(scene) for scene in range(100) for _ in range(2)]
    alarms, found = 0, 0
    for draw in range(30):
        scene = rng.normal(size=100).repeat(2)
        runs = [(scene + rng.normal(size=(3, 200)) + 0.3 * rng.normal(size=(3, 1)) > 0) for _ in range(2)]
        better = scene + rng.normal(size=(3, 200)) + 1.5 > 0
        alarms += paired_interval(columns(runs[0], names), columns(runs[1], names), seed=draw).p < 0.05
        found += paired_interval(columns(better, names), columns(runs[1], names), seed=draw).p < 0.05
    assert alarms <= 5  # 5 % of 30 is 1.5; three seeds resample a little too narrowly
    assert found == 30


def test_units_must_be_the_same() -> None:
    with pytest.raises(ValueError, match="same units"):
        paired_interval(columns([[1, 0]], ["a", "b"]), columns([[1, 0]], ["a", "c"]))


def record(condition: str, arm: Arm, rate: float, seed: int, score: float = 0.5) -> dict[str, Any]:
    return {
        "run": run_of(condition, arm, rate, seed)._asdict(),
        "seconds": 1.0,
        "validation": {"score": score},
        "test": {name: {"values": []} for name in evaluation.METRICS},
    }


def test_all_rates_are_tried_before_the_best_gets_its_seeds(tmp_path: Path) -> None:
    records, arm = Records(tmp_path / "runs.jsonl"), Arm("svco")
    assert [(run.learning_rate, run.seed) for run in next_runs(records, "clean", arm)] == [
        (rate, SEEDS[0]) for rate in LEARNING_RATES
    ]
    for place, rate in enumerate(LEARNING_RATES):
        records.add(record("clean", arm, rate, SEEDS[0], score=0.1 * (place % 2)))
    assert chosen_rate(records, "clean", arm) == LEARNING_RATES[1]
    assert [(run.learning_rate, run.seed) for run in next_runs(records, "clean", arm)] == [
        (LEARNING_RATES[1], seed) for seed in SEEDS[1:]
    ]


def test_what_was_asked_too_little_is_asked_again_at_its_rate_alone(tmp_path: Path) -> None:
    records, arm = Records(tmp_path / "runs.jsonl"), Arm("svco")
    for place, rate in enumerate(LEARNING_RATES):
        old = record("clean", arm, rate, SEEDS[0], score=0.1 * (place % 2))
        del old["test"]["loss"]
        records.add(old)
    assert [(run.learning_rate, run.seed) for run in next_runs(records, "clean", arm)] == [
        (LEARNING_RATES[1], seed) for seed in SEEDS
    ]


def test_an_arm_brings_the_rate_that_it_had_on_clean_pairs(tmp_path: Path) -> None:
    records, arm = Records(tmp_path / "runs.jsonl"), Arm("svco", next_token=True)
    tuned = Arm("svco")
    assert list(next_runs(records, "noisy", arm)) == [run_of("clean", tuned, rate, 0) for rate in LEARNING_RATES]
    for place, rate in enumerate(LEARNING_RATES):
        records.add(record("clean", tuned, rate, SEEDS[0], score=0.1 * place))
    assert list(next_runs(records, "noisy", arm)) == [run_of("noisy", arm, LEARNING_RATES[-1], s) for s in SEEDS]
    alone = Arm("svco_one_sided", next_token=True)
    assert [run.condition for run in next_runs(records, "one_sided", alone)] == ["one_sided"] * len(LEARNING_RATES)


def test_a_line_cut_short_is_done_again_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path, arm = tmp_path / "runs.jsonl", Arm(CONTROL)
    records = Records(path)
    records.add(record("clean", arm, LEARNING_RATES[0], 0))
    with path.open("a") as file:
        file.write(json.dumps(record("clean", arm, LEARNING_RATES[1], 0))[:40])
    again = Records(path)
    assert len(again.found) == 1
    again.add(record("clean", arm, LEARNING_RATES[1], 0))
    assert len(Records(path).found) == 2


@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_arm_is_an_objective_that_its_rows_can_feed(condition: str) -> None:
    found = list(arms(condition))
    assert found[0] == Arm(CONTROL)
    assert len(set(found)) == len(found)
    assert all(arm.control in found for arm in found)
    row = CONDITIONS[condition].rows(seed=0)[0]
    for arm in found:
        method = METHODS[arm.method]
        columns = set(row) | ({"contrast_image"} if method.corrupt else set())
        needs = objective_from([part for part in arm.objective() if part["sources"] == "pairs"]).needs_for("pairs")
        wanted = {view.response for view in needs.views} | {view.image for view in needs.views} - {None}
        assert wanted <= columns, arm.name


def test_conditions_are_what_they_say() -> None:
    clean, noisy = CONDITIONS["clean"].rows(0), CONDITIONS["noisy"].rows(0)
    swapped = [old["chosen"] == new["rejected"] for old, new in zip(clean, noisy, strict=True)]
    assert 0.25 < sum(swapped) / len(swapped) < 0.35
    assert len(CONDITIONS["few"].rows(0)) == 60
    assert all("rejected" not in row for row in CONDITIONS["one_sided"].rows(0))
    assert np.mean([len(row["chosen"].split()) for row in CONDITIONS["long"].rows(0)[:50]]) > 20
    first, second = mirrored(clean[:1])
    assert (second["chosen"], second["image"]) == (first["rejected"], first["contrast_image"])
    assert len({row["id"] for row in mirrored(clean)}) == 2 * len(clean)
    assert len(replay_rows(0, 12)) == 12


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study of two steps and a few questions."""
    monkeypatch.setattr(one_run, "STEPS", 2)
    monkeypatch.setattr(one_run, "replay_rows", lambda seed: replay_rows(seed, 24))
    monkeypatch.setitem(one_run.CONDITIONS, "clean", replace(CONDITIONS["clean"], num_pairs=12))
    sizes = {"NUM_SCENES": 6, "NUM_PAIRS": 4, "NUM_POLLS": 4, "NUM_CAPTIONS": 3, "NUM_ANSWERS": 5}
    for name, value in (sizes | {"VALIDATION_SCENES": 4, "VALIDATION_PAIRS": 3, "CAPTION_TOKENS": 8}).items():
        monkeypatch.setattr(evaluation, name, value)
    evaluation.test_items.cache_clear()
    evaluation.validation_items.cache_clear()
    evaluation.answers.cache_clear()


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_from_training_to_the_page(tmp_path: Path) -> None:
    records = Records(tmp_path / "runs.jsonl")
    records.add(one_run.base_record())
    for arm in (Arm(CONTROL), Arm("mdpo")):
        first = one_run.carry_out(run_of("clean", arm, LEARNING_RATES[0], 0), tmp_path / "cache", tested=True)
        assert 0 <= first["validation"]["score"] <= 1
        for rate in LEARNING_RATES:
            records.add({**first, "run": run_of("clean", arm, rate, 0)._asdict()})
        for seed in SEEDS[1:]:
            records.add({**first, "run": run_of("clean", arm, LEARNING_RATES[0], seed)._asdict()})
    assert [outcome.arm.method for outcome in finished(records, "clean")] == [CONTROL, "mdpo"]
    write_page(records, tmp_path / "README.md")
    page = (tmp_path / "README.md").read_text()
    assert "| base |" in page
    assert "no arm is clearly ahead of its control" in page
    assert "Not finished yet: clean: next_token_3x + replay" in page
