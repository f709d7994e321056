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
from runs import picture


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
    with pytest.raises(ValueError, match="--limit 3 and --suite smoke both say how much"):
        benchmark_items("world", limit=3, suite="smoke")
    with pytest.raises(SystemExit) as stop:
        main(["eval", "run", "demo-base", "--suite", "smoke", "--limit", "3", "--output", "out"])
    assert stop.value.code == 2
    assert "argument --limit: not allowed with argument --suite" in capsys.readouterr().err


def test_a_smoke_run_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(20):
        picture(number).save(tmp_path / f"{number}.png")
    rows = [
        {"question_id": n, "image": f"{n}.png", "text": f"Is there a disc {n}?", "label": ("yes", "no")[n % 2]}
        for n in range(20)
    ]
    (tmp_path / "coco_pope_random.json").write_text("\n".join(map(json.dumps, rows)))
    where = (
        "--benchmark",
        "pope",
        "--data",
        str(tmp_path),
        "--images",
        str(tmp_path),
    )
    assert main(["eval", "run", "demo-base", "--suite", "smoke", *where, "--output", str(tmp_path / "smoke")]) == 0
    assert "about" not in capsys.readouterr().err, "nothing is said of how long a short run takes"
    results = json.loads((tmp_path / "smoke" / "results.json").read_text())
    assert results["suite"] == suite_label("smoke")
    assert [part["questions"] for part in results["data"].values()] == [8]
    ((_, rows_shown),) = [part for part in run_card(results) if part[0] == "Run"]
    assert ("Questions", suite_label("smoke")) in rows_shown
    assert suite_label("full") == "full: every question"
    assert suite_label("full", 5) == "--limit 5: at most 5 questions (of pairs, pairs) of each split"
    assert main(["eval", "run", "demo-base", *where, "--batch-size", "2", "--output", str(tmp_path / "full")]) == 0
    assert "a minute or less for 20 questions, under every picture" in capsys.readouterr().err
    assert len((tmp_path / "full" / "answers.jsonl").read_text().splitlines()) == 20 * 2 * 4, "each was asked once"
