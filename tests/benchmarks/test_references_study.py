"""The references study: what its arms say, how answers are measured, what runs next, and one run from end to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import references
from mllm_align.data.references import NAMES
from mllm_align.data.schema import parse_row
from mllm_align.models import load_model
from records import Records
from references import ARMS, LEARNING_RATES, METRICS, SEEDS, SHORT_NAMES, SIZES, Run, undeclared_rows

Row = dict[str, Any]


def said(row: Row) -> str:
    parts = [part for message in parse_row(row).messages for part in message["content"]]
    return "".join("<image>" if part["type"] == "image" else part["text"] for part in parts)


def test_arms_show_the_same_and_differ_in_what_they_say() -> None:
    for row in undeclared_rows(6, 3):
        names, asked = row[NAMES], row["prompt"]
        declared, listed, places = (references.spoken(row, arm) for arm in ARMS)
        assert said(declared) == "\n".join([*(f"{name} is <image>" for name in names), asked])
        assert said(listed) == "<image>" * 3 + "\n".join([*names, asked])
        assert said(places) == "<image>" * 3 + asked
        assert declared["images"] == listed["images"] == places["images"] == row["images"]
        assert declared["chosen"] == listed["chosen"] == row["chosen"]
        assert places["chosen"] == SHORT_NAMES[names.index(row["chosen"])]


@pytest.mark.parametrize("size", SIZES)
def test_every_picture_moves_and_its_name_with_it(size: int) -> None:
    turns = set()
    for row in undeclared_rows(20, size):
        turned = references.moved(row)
        before = [(name, image.tobytes()) for name, image in zip(row[NAMES], row["images"], strict=True)]
        after = [(name, image.tobytes()) for name, image in zip(turned[NAMES], turned["images"], strict=True)]
        assert sorted(before) == sorted(after)
        assert all(one != other for one, other in zip(before, after, strict=True))
        assert (turned["chosen"], turned["prompt"]) == (row["chosen"], row["prompt"])
        turns.add(before.index(after[0]))
    assert turns == set(range(1, size))


def shares(monkeypatch: pytest.MonkeyPatch, arm: str, size: int, given: Callable[[Row], str]) -> dict[str, float]:
    """What is measured of a model that answers so."""

    def answers(model: Any, processor: Any, rows: Sequence[Row]) -> list[str]:
        return [given(row) for row in rows]

    monkeypatch.setattr(references, "answers", answers)
    found = references.measured(None, None, arm, size, "validation", 6 * size)
    assert set(found) == set(METRICS)
    return {metric: sum(values) / len(values) for metric, values in found.items()}


@pytest.mark.parametrize("size", SIZES)
def test_what_is_measured_of_models_that_are_known(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    everything = dict.fromkeys(METRICS, 1.0)
    for arm in ARMS:
        assert shares(monkeypatch, arm, size, lambda row: row["chosen"]) == everything
    # One name for all is equal under reordering, and right by chance.
    constant = shares(monkeypatch, "declared", size, lambda row: "one")
    assert constant == pytest.approx({"right": 1 / size, "moved": 1 / size, "both": 1 / size, "same": 1.0})
    # One place for all is another picture after reordering.
    first = shares(monkeypatch, "places", size, lambda row: "one")
    assert (first["same"], first["both"]) == (0.0, 0.0)

    def name_of_the_first(row: Row) -> str:
        return said(row).removesuffix("\n")[: said(row).index(" is <image>")]

    assert shares(monkeypatch, "declared", size, name_of_the_first)["same"] == 0.0


def test_answers_are_those_of_a_loop_over_names() -> None:
    model, processor = load_model("demo-base", device="cpu", dtype="float32")
    rows = [references.spoken(row, "declared") for size in SIZES for row in undeclared_rows(6, size)]
    found = references.answers(model, processor, rows, batch_size=5)
    for row, given in zip(rows, found, strict=True):
        scores = {}
        for name in SHORT_NAMES[: len(row["images"])]:
            text = processor.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True) + name
            read = processor(text=[text], images=row["images"], add_special_tokens=False, return_tensors="pt")
            with torch.no_grad():
                logits = model(**read).logits[0].double()
            ids = read["input_ids"][0]
            scores[name] = float(logits[-2, ids[-1]])
        assert given == max(scores, key=scores.__getitem__)
    assert len(set(found)) > 1


def record(run: Run, validation: float = 0.5, values: Sequence[int] = (1, 0, 1, 0)) -> Row:
    test = {str(size): {metric: list(values) for metric in METRICS} for size in SIZES}
    cost = {"seconds": 1.0, "losses": [1.0]} if run.rate else {}
    return {"run": run._asdict(), **cost, "validation": validation, "test": test}


def test_rates_first_then_seeds_and_nothing_twice(tmp_path: Path) -> None:
    records = Records(tmp_path / "runs.jsonl", Run)
    waiting = list(references.next_runs(records))
    assert {run.rate for run in waiting} == {0.0, *LEARNING_RATES}
    assert {run.seed for run in waiting} == {SEEDS[0]}
    for run in waiting:
        better = LEARNING_RATES[1 if run.arm == "listed" else 0]
        records.add(record(run, validation=0.6 if run.rate == better else 0.4))
    again = Records(tmp_path / "runs.jsonl", Run)
    assert [references.chosen_rate(again, arm) for arm in ARMS] == [LEARNING_RATES[arm == "listed"] for arm in ARMS]
    more = list(references.next_runs(again))
    assert more == [Run(arm, LEARNING_RATES[arm == "listed"], seed) for seed in SEEDS[1:] for arm in ARMS]
    assert references.finished(again, "declared") == []
    for run in more:
        again.add(record(run, values=(1, 1, 1, 0) if run.arm == "declared" else (1, 0, 0, 0)))
    assert list(references.next_runs(again)) == []
    lines = references.table(again, 2).splitlines()
    assert lines[2] == "| an answer drawn at random | 50.0 | 50.0 | 25.0 | 50.0 |"
    # Seed 0 has 2 of 4, the others 3 of 4 and 1 of 4.
    by_name = {line.split(" | ")[0]: line for line in lines}
    assert "| 66.7 (" in by_name["| `declared`"]
    assert "| 33.3 (" in by_name["| `listed`"]
    assert "| +33.3 (" in by_name["| `declared` - `listed`"]


def test_from_training_to_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NUM_ROWS": 8, "NUM_VALIDATION": 4, "NUM_TEST": 4, "BATCH": 4}.items():
        monkeypatch.setattr(references, name, value)
    first = references.carry_out(Run("listed", LEARNING_RATES[0], 0, 2))
    assert 0 <= first["validation"] <= 1
    assert {size: len(test["both"]) for size, test in first["test"].items()} == {"2": 4, "3": 4}
    records = Records(tmp_path / "runs.jsonl", Run)
    while waiting := list(references.next_runs(records)):
        for run in waiting:
            own = {"losses": [0.25]} if run.rate else {}
            records.add({**first, **own, "run": run._asdict()})
    written = references.page(records)
    assert all(f"## {size} pictures\n\n{references.table(records, size)}" in written for size in SIZES)


def test_the_page_has_the_tables_of_the_records() -> None:
    records = Records(references.HERE / "references_runs.jsonl", Run)
    assert list(references.next_runs(records)) == []
    written = (references.HERE / "references.md").read_text(encoding="utf-8")
    assert all(references.table(records, size) in written for size in SIZES)
