"""The study of named pictures: what it runs next, rows that differ in their order alone, how it asks, its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reference_arms
import reference_run
from mllm_align.data.references import declare_references
from mllm_align.data.schema import parse_row
from mllm_align.data.world import reference_rows
from mllm_align.models import load_model
from records import Records
from reference_arms import ARMS, BASE, BY_LOOKS, CONTROL, DRAWN, ROWS_PER_STEP, SEEDS, STAGED, STEPS, Run, base_run
from reference_page import METRICS, finished, page
from reference_run import ASKED, chosen, nearest_name, placed, training_rows
from references import missing

STUDY = Path(reference_arms.__file__).resolve().parent


def record(run: Run, right: Any = (1, 0, 1, 1)) -> dict[str, Any]:
    test = {f"{ask}/{metric}": {"values": list(right)} for ask in (*ASKED, BY_LOOKS) for metric in METRICS}
    return {"run": run._asdict(), "seconds": 8.0, "test": test}


def order_of(row: dict[str, Any]) -> list[bytes]:
    return [image.tobytes() for image in row["images"]]


def introduced(row: dict[str, Any]) -> list[str]:
    parts = parse_row(row).messages[0]["content"]
    return [part["text"].strip() for part in parts if part["type"] == "text"][:-1]


def in_order(rows: list[dict[str, Any]]) -> float:
    return sum(introduced(row) == ["picture one is", "picture two is"] for row in rows) / len(rows)


def test_the_base_then_the_seeds_of_every_arm_and_nothing_twice(tmp_path: Path) -> None:
    records = Records(tmp_path / "runs.jsonl", Run)
    trained = [arm for arm in ARMS if arm != BASE]
    wanted = [base_run(), *(Run(arm, seed, 5) for arm in trained for seed in SEEDS)]
    assert list(missing(records, 5, SEEDS)) == wanted
    for run in wanted[:3]:
        records.add(record(run))
    assert list(missing(Records(tmp_path / "runs.jsonl", Run), 5, SEEDS)) == wanted[3:]


def test_arms_differ_in_the_order_of_pictures_alone() -> None:
    staged, drawn, fixed = (training_rows(Run(arm, 1, 5)) for arm in (STAGED, DRAWN, CONTROL))
    assert len(fixed) == 5 * ROWS_PER_STEP
    for rows in (staged, drawn):
        assert [row["chosen"] for row in rows] == [row["chosen"] for row in fixed]
        assert [sorted(order_of(row)) for row in rows] == [sorted(order_of(row)) for row in fixed]
    assert len({tuple(sorted(order_of(row))) for row in fixed}) == len(fixed)
    # One step of looks in order, one with most of them so, then looks and descriptions in either.
    second, last = ROWS_PER_STEP, 2 * ROWS_PER_STEP
    assert in_order(fixed) == in_order(staged[:second]) == 1
    assert 0.5 < in_order(staged[second:last]) < 0.95
    assert 0.35 < in_order(staged[last:]) < 0.65
    assert 0.35 < in_order(drawn) < 0.65
    assert max(len(row["chosen"].split()) for row in staged[:last]) == 1
    assert len({len(row["chosen"].split()) == 1 for row in staged[last:]}) == 2
    assert [row["chosen"] for row in training_rows(Run(CONTROL, 2, 5))] != [row["chosen"] for row in fixed]


def test_a_turned_row_has_the_same_pictures_under_the_same_names() -> None:
    row = reference_rows(1, declared=False)[0]
    own, turned = placed(row, False), placed(row, True)
    assert order_of(turned) == order_of(own)[::-1]
    assert introduced(turned) == introduced(own)[::-1] == ["picture two is", "picture one is"]
    assert turned["chosen"] == own["chosen"]


def test_the_more_probable_answer_is_that_of_a_loop() -> None:
    model, processor = load_model("demo-base", device="cpu")
    rows = [declare_references(row) for row in reference_rows(6, declared=False, asks=["describe"])]
    answers = [(row["chosen"], row["rejected"]) for row in rows]
    found = chosen(model, processor, rows, answers)
    nats = [
        [reference_run.losses(model, processor, [{**row, "chosen": text}]).nats[0] for text in own]
        for row, own in zip(rows, answers, strict=True)
    ]
    assert found == [int(first >= second) for first, second in nats]
    assert chosen(model, processor, rows, [(text, text) for text, _ in answers]) == [1] * 6  # a tie is wrong


def test_the_name_by_looks_is_that_of_a_loop() -> None:
    model, processor = load_model("demo-base", device="cpu")
    rows = reference_rows(6, declared=False)

    def nats(row: dict[str, Any], name: str, turned: bool) -> float:
        size, colour, shape = row["prompt"].rstrip("?").split()[-3:]
        asked = {f"What size is the {shape} in {name}?": size, f"What colour is the {shape} in {name}?": colour}
        given = [placed({**row, "prompt": prompt, "chosen": text}, turned) for prompt, text in asked.items()]
        return sum(reference_run.losses(model, processor, [each]).nats[0] for each in given)

    for turned in (False, True):
        wanted = [int(nats(row, row["chosen"], turned) >= nats(row, row["rejected"], turned)) for row in rows]
        assert nearest_name(model, processor, rows, turned) == wanted
    assert nearest_name(model, processor, [{**row, "rejected": row["chosen"]} for row in rows], False) == [1] * 6


def test_both_orders_together_are_those_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_run, "NUM_TEST", 8)
    reference_run.asked.cache_clear()
    parts = reference_run.test_parts(*load_model("demo-base", device="cpu"))
    reference_run.asked.cache_clear()
    for ask in (*ASKED, BY_LOOKS):
        first, turned = (np.array(parts[f"{ask}/{order}"].values) for order in ("first", "turned"))
        assert parts[f"{ask}/both"].values == (first * turned).tolist()
        assert parts[f"{ask}/equal"].values == (first == turned).astype(float).tolist()
        assert len(set(parts[f"{ask}/both"].clusters)) == 8


def test_from_training_to_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_run, "NUM_TEST", 4)
    reference_run.asked.cache_clear()
    found = reference_run.carry_out(Run(STAGED, 0, 2), tmp_path / "cache")
    reference_run.asked.cache_clear()
    json.dumps(found)
    assert found["run"] == {"arm": STAGED, "seed": 0, "steps": 2}
    assert len(found["losses"]) == 2
    assert len(found["test"]["where/both"]["values"]) == 4


def test_the_page_has_means_and_the_difference_to_the_control(tmp_path: Path) -> None:
    records = Records(tmp_path / "runs.jsonl", Run)
    for seed in SEEDS:
        records.add(record(Run(STAGED, seed, 5), (1, 1, 1, 1)))
        records.add(record(Run(CONTROL, seed, 5), (1, 1, 0, 0)))
    assert list(finished(records, 5)) == [STAGED, CONTROL]
    text = page(records, 5)
    assert f"| {STAGED} - {CONTROL} | +50.0 (" in text
    assert f"| {STAGED} | 100.0 (100.0, 100.0) |" in text
    assert f"`{CONTROL}` 8 s" in text
    assert "| base |" not in text
    assert "Not all seeds have run of: `base`, `drawn`." in text
    assert f"`{STAGED}` 100.0, 100.0, 100.0; `{CONTROL}` 50.0, 50.0, 50.0." in text


def test_the_page_is_that_of_the_records() -> None:
    records = Records(STUDY / "reference_runs.jsonl", Run)
    assert {BASE, STAGED, CONTROL} <= set(finished(records, STEPS))
    assert (STUDY / "references.md").read_text(encoding="utf-8") == page(records, STEPS)
