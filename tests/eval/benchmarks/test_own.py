"""A benchmark of the user's own: its columns, how they are scored, and what is said of those that are wrong."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from eval_items import picture
from mllm_align.cli import main
from mllm_align_eval.benchmarks import BENCHMARKS
from mllm_align_eval.benchmarks.own import SUFFIX
from mllm_align_eval.items import Answer, Item
from mllm_align_eval.run import benchmark_items

ROWS: list[dict[str, Any]] = [
    {"image": "a.png", "question": "Which?", "choices": ["Open", "Closed"], "answer": "Closed", "split": "doors"},
    {"image": "a.png", "question": "Is it open?", "answer": False, "id": "q2", "cluster": "a"},
    {"image": ["a.png", "b.png"], "prompt": "How many?", "answer": ["two", "a pair"], "hint": "Look at both."},
]


def in_base64(shade: int) -> str:
    buffer = io.BytesIO()
    picture(shade).resize((64, 64)).save(buffer, "BMP")
    return base64.b64encode(buffer.getvalue()).decode()


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def table(path: Path, rows: list[dict[str, Any]], delimiter: str = "\t") -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(c for row in rows for c in row)), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_what_the_answer_holds_says_how_a_row_is_asked_and_scored(tmp_path: Path) -> None:
    items = benchmark_items("own", lines(tmp_path / "mine.jsonl", ROWS))
    choice, closed, short = items
    assert choice.prompt == f"Which?\nA. Open\nB. Closed{SUFFIX}"
    assert (choice.choices, choice.labels, choice.answer) == (("A", "B"), ("Open", "Closed"), "B")
    assert (choice.id, choice.split, choice.cluster) == ("own/1", "doors", "a.png")
    assert (closed.prompt, closed.choices, closed.answer) == ("Is it open?", ("yes", "no"), "no")
    assert (closed.id, closed.split, closed.cluster) == ("own/q2", "test", "a")
    assert (short.prompt, short.choices) == ("Look at both.\nHow many?", ())
    assert [shown.name for shown in short.pictures] == ["a.png", "b.png"]
    assert scores(items, ["B. Closed", "Yes.", "It is two"]) == {
        "own/acc": 1 / 3,
        "own/doors/acc": 1.0,
        "own/test/acc": 0.0,
        "own/choice_acc": 1.0,
        "own/yes_no_acc": 0.0,
        "own/short_acc": 0.0,
    }
    assert scores(items, ["A", "no", "The pair."])["own/acc"] == 2 / 3
    assert scores(items, ["A", "no", "2"])["own/short_acc"] == 1.0


def scores(items: list[Item], texts: list[str]) -> dict[str, float]:
    own = BENCHMARKS["own"]
    answers: dict[str, Answer] = {i.id: own.answer(i, text, "strict") for i, text in zip(items, texts, strict=True)}
    found = own.score(items, answers, "strict")
    return {name: float(m.metric.statistic(m.metric.columns.sum(0))) for name, m in found.items()}


def test_a_table_of_vlmevalkit_with_pictures_inside(tmp_path: Path) -> None:
    image = in_base64(7)
    rows = [
        {"index": 3, "image": image, "question": "Which?", "A": "Red", "B": "Blue", "C": "", "answer": "A"},
        {"index": 4, "image": "3", "question": "And now?", "A": "Red", "B": "Blue", "C": "Green", "answer": "C"},
    ]
    first, second = benchmark_items("own", table(tmp_path / "mine.tsv", rows))
    assert (first.id, first.choices, first.labels) == ("own/3", ("A", "B"), ("Red", "Blue"))
    assert (second.choices, second.answer) == (("A", "B", "C"), "C")
    assert first.cluster == second.cluster
    for item in (first, second):
        assert item.pictures[0].load().getpixel((5, 5)) == (7, 0, 0)
    rows[0]["image"] = "A" * 400
    (broken, _) = benchmark_items("own", table(tmp_path / "mine.tsv", rows))
    with pytest.raises(ValueError, match=r"mine\.tsv, line 2, column image: the base64 there is no picture"):
        broken.pictures[0].load()


def test_several_files_are_splits(tmp_path: Path) -> None:
    table(tmp_path / "one.csv", [{"image": "a.png", "question": "Q?", "answer": "x"}], ",")
    lines(tmp_path / "two.jsonl", ROWS[1:2])
    items = benchmark_items("own", str(tmp_path))
    assert [(item.id, item.split) for item in items] == [("own/one/2", "one"), ("own/two/q2", "two")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": None}, "line 1, column image: is empty"),
        ({"image": 3}, "line 1, column image: 3 is neither"),
        ({"question": ""}, "line 1, column question: is empty"),
        ({"answer": ""}, "line 1, column answer: is empty"),
        ({"answer": "D"}, "line 1, column answer: 'D' is none of A, B; give one letter"),
        ({"choices": ["B", "A"], "answer": "A"}, "column answer: 'A' could be A, B"),
        ({"choices": ["Open"]}, "line 1, column choices: 1 choices; give 2 to 26"),
        ({"choices": "[Open"}, r"line 1, column choices: begins with \[ and is no JSON list"),
        ({"A": "Open"}, "line 1, column choices: is filled, and so is column A"),
        ({"choices": [], "A": "Open", "C": "Ajar"}, "line 1, column C: is filled, and a letter before it is not"),
        ({"id": "q2"}, "line 2, column id: 'q2' is that of .*line 1 too"),
    ],
)
def test_what_is_wrong_is_named_by_line_and_column(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "mine.jsonl", [ROWS[0] | change, *ROWS[1:]])
    with pytest.raises(ValueError, match=said):
        benchmark_items("own", path)


def test_a_run_finds_the_pictures_beside_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ("eval", "run", "demo-base", "--benchmark", "own", "--data", lines(tmp_path / "mine.jsonl", ROWS))
    run += ("--output", str(tmp_path / "out"))
    picture(1).save(tmp_path / "a.png")
    assert main(run) == 2
    assert f"1 of 2 images are not in {tmp_path} (first: b.png)" in capsys.readouterr().err
    picture(2).save(tmp_path / "b.png")
    assert main(run) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["arms"]["base"]["own/acc_generated"]["n"] == 3
    assert results["arms"]["base"]["own/choice_acc"]["n"] == 1
