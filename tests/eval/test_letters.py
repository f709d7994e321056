"""Multiple choice in the opposite order and by wording: which questions are made, and what the answers give."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from mllm_align.cli import main
from mllm_align_eval.items import Answer, Item
from mllm_align_eval.letters import Checks, has_letters, measured, mirrored, worded
from mllm_align_eval.report.run_card import check_lines
from mllm_align_eval.run import benchmark_items


def item(prompt: str, labels: tuple[str, ...], answer: str, number: int = 0, letters: str = "ABCD") -> Item:
    choices = tuple(letters[: len(labels)])
    cluster = f"c{number % 3}"
    return Item(f"q{number}", "own", "test", "choice", cluster, prompt, (), choices, answer, labels=labels)


@pytest.mark.parametrize(
    ("prompt", "labels", "expected"),
    [
        ("Is A big? (A) A (B) no B", ("A", "no B"), "Is A big? (A) no B (B) A"),
        ("Which?\nA. red\nB. red ball\nC. x.y\nAnswer.", ("red", "red ball", "x.y"),
         "Which?\nA. x.y\nB. red ball\nC. red\nAnswer."),
        ("Which? (a) one (b) two", ("one", "two"), "Which? (a) two (b) one"),
        ("Pick: A: dog B: cat", ("dog", "cat"), "Pick: A: cat B: dog"),
    ],
)  # fmt: skip
def test_options_change_places_behind_their_letters(prompt: str, labels: tuple[str, ...], expected: str) -> None:
    turned = mirrored(item(prompt, labels, "A"))
    assert turned is not None
    assert turned.prompt == expected
    assert turned.labels == labels[::-1]
    assert turned.labels[turned.choices.index(turned.answer)] == labels[0]
    back = mirrored(turned)
    assert back is not None
    assert (back.prompt, back.answer) == (prompt, "A")


def test_what_cannot_be_turned_or_worded_is_left_out() -> None:
    assert mirrored(item("Which? red or blue", ("red", "blue"), "A")) is None
    assert worded(item("(A) red (B) red", ("red", "red"), "A")) is None
    assert not has_letters(Item("x", "pope", "test", "k", "c", "Is it?", (), ("yes", "no"), "yes"))
    assert len(Checks.of([item("Which? red or blue", ("red", "blue"), "B")]).asked) == 1


def test_numbers_are_those_of_a_loop() -> None:
    rng = random.Random(0)
    items = [item("? (A) red (B) dark blue (C) x", ("red", "dark blue", "x"), rng.choice("ABC"), n) for n in range(12)]
    checks = Checks.of(items)
    given: dict[str, Answer] = {}
    for each in (*items, *checks.asked):
        scores = [rng.uniform(-20, 0) for _ in each.choices]
        choice = each.choices[scores.index(max(scores))]
        given[each.id] = Answer(each.id, choice, choice, choice == each.answer, scores)
    told = measured(checks, given)
    same = right = wording = 0
    for each in items:
        place = each.choices.index(given[each.id].choice)
        other = each.choices.index(given[f"{each.id}/reversed"].choice)
        same += place == 2 - other
        right += 2 - other == each.choices.index(each.answer)
        per_byte = [s / len(label) for s, label in zip(given[f"{each.id}/worded"].scores, each.labels, strict=True)]
        wording += per_byte.index(max(per_byte)) == each.choices.index(each.answer)
    assert told["same_option"]["value"] == pytest.approx(same / 12)
    assert told["reversed"]["value"] == pytest.approx(right / 12)
    assert told["wording"]["value"] == pytest.approx(wording / 12)
    assert told["letters"]["value"] == pytest.approx(sum(given[each.id].right for each in items) / 12)
    assert all(entry["low"] <= entry["value"] <= entry["high"] and entry["n"] == 12 for entry in told.values())
    assert check_lines({"letter_checks": {"own": {"base": told}}})[2][0].endswith(
        "base: the same option in both orders"
    )


@pytest.mark.parametrize("name", ["mmvp", "cvbench"])
def test_every_published_question_can_be_turned(name: str, data_dir: Path) -> None:
    items = benchmark_items(name, str(data_dir))
    checks = Checks.of(items)
    assert len(checks.items) == len(items) == len(checks.reversed)
    for each in items:
        turned = checks.reversed[each.id]
        assert turned.labels[turned.choices.index(turned.answer)] == each.labels[each.choices.index(each.answer)]
        assert sorted(turned.prompt) == sorted(each.prompt)


def test_a_run_asks_them_where_it_is_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{number}.png")
        row = {
            "image": f"{number}.png",
            "question": "Which colour?",
            "choices": ["red", "green", "blue"],
            "answer": colour,
        }
        rows.append(row)
    table = tmp_path / "mine.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        "eval",
        "run",
        "demo-base",
        "--benchmark",
        "own",
        "--data",
        str(table),
        "--output",
        str(tmp_path / "out"),
    ]
    assert main([*command, "--letter-checks"]) in (0, None)
    assert "base: by the option's wording, per byte" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results["letter_checks"]["own"]["base"]) == {"letters", "reversed", "same_option", "wording"}
    assert "Multiple choice in other ways" in (tmp_path / "out" / "report.html").read_text()
    refused = ["eval", "run", "demo-base", "--limit", "2", "--letter-checks", "--output", str(tmp_path / "world")]
    assert main(refused) == 2
    assert "no question of this run has options by letter" in " ".join(capsys.readouterr().err.split())
