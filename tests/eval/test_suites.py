"""Suites: how many questions are asked, and which."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval_items import item
from mllm_align.cli import main
from mllm_align.cli.evaluation import SUITES as WRITTEN
from mllm_align_eval.report.run_card import run_card
from mllm_align_eval.run import benchmark_items
from mllm_align_eval.suites import SUITES, suite_items, suite_label


def test_a_suite_has_its_number_of_units_of_each_split_in_their_order() -> None:
    questions = [item(f"a{n}", ("yes", "no")[n % 2], split="many") for n in range(1000)]
    pairs = [item(f"p{n}/{side}", split="pairs", pair=f"p{n}") for n in range(400) for side in "ab"]
    few = [item("only", split="few")]
    asked = [*questions, *pairs, *few]
    found = {suite: suite_items(asked, suite) for suite in SUITES}
    for suite, units in (("smoke", 8), ("quick", 300)):
        kept = found[suite]
        assert kept == [one for one in asked if one in kept]
        assert sum(one.split == "many" for one in kept) == units
        sides = [one.pair for one in kept if one.split == "pairs"]
        assert len(sides) == 2 * units == 2 * len(set(sides))
        assert few[0] in kept
    assert found["full"] == asked
    assert {one.id for one in found["smoke"]} <= {one.id for one in found["quick"]}
    # Every other question of the file is a "no", and so is about half of what is asked.
    assert 120 < sum(one.answer == "no" for one in found["quick"]) < 180
    with pytest.raises(ValueError, match="no suite 'fast'; use smoke, quick, full"):
        suite_items(asked, "fast")


def test_a_limit_and_a_suite_are_not_given_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(SUITES) == WRITTEN
    with pytest.raises(ValueError, match="--limit 3 and --suite smoke both say how many"):
        benchmark_items("world", limit=3, suite="smoke")
    with pytest.raises(SystemExit) as stop:
        main(["eval", "run", "demo-base", "--suite", "smoke", "--limit", "3", "--output", "out"])
    assert stop.value.code == 2
    assert "argument --limit: not allowed with argument --suite" in capsys.readouterr().err


def test_a_smoke_run_says_what_it_is(tmp_path: Path) -> None:
    where = ("--benchmark", "world_correspondence", "--output", str(tmp_path))
    assert main(["eval", "run", "demo-base", "--suite", "smoke", *where]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["suite"] == suite_label("smoke")
    assert {part["questions"] for part in results["data"].values()} == {16}, "eight pairs"
    ((_, rows),) = [part for part in run_card(results) if part[0] == "Run"]
    assert ("Questions", suite_label("smoke")) in rows
    assert suite_label("full") == "full: every question"
    assert suite_label("full", 5) == "--limit 5: at most 5 questions (of pairs, pairs) of each split"
