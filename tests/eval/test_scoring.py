"""Answers of any model to scores: what is printed, what is read, and what does not fit together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mllm_align.cli import encoders, main
from mllm_align.cli.scoring import NAMES, PARSERS
from mllm_align_eval import benchmark
from mllm_align_eval.answer_file import read_answers
from mllm_align_eval.benchmarks import BENCHMARKS
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.pope import POPE
from mllm_align_eval.scoring import answers_of, measures_of, questions_of

ROWS = [
    {"question_id": n, "image": f"{n // 2}.jpg", "text": f"Is there a {thing} in the image?", "label": label}
    for n, (thing, label) in enumerate([("dog", "yes"), ("cat", "no"), ("car", "yes"), ("cup", "no")])
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "pope"
    folder.mkdir(parents=True)
    (folder / "coco_pope_adversarial.json").write_text("\n".join(map(json.dumps, ROWS)))
    return folder.parent


def write_answers(path: Path, texts: dict[str, str]) -> Path:
    path.write_text("\n".join(json.dumps({"id": name, "text": text}) for name, text in texts.items()))
    return path


def test_from_questions_to_scores(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "questions", "pope", "--data", str(data)]) == 0
    asked = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [set(question) for question in asked] == [{"id", "split", "image", "prompt"}] * 4
    assert (asked[2]["image"], asked[2]["split"]) == ("1.jpg", "adversarial")
    assert asked[2]["prompt"].startswith("Is there a car in the image?")
    texts = {question["id"]: text for question, text in zip(asked, ["Yes", "Yes", "Yes.", "No"], strict=True)}
    answers, out = write_answers(tmp_path / "answers.jsonl", texts), tmp_path / "new" / "scores.json"
    score = ["eval", "score", "pope", "--data", str(data), "--answers", str(answers)]
    assert main([*score, "--json", str(out)]) == 0
    assert "pope/adversarial/acc" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["pope/adversarial/acc"]["value"] == 0.75
    assert found["pope/adversarial/f1"]["value"] == pytest.approx(0.8)
    assert set(found["pope/adversarial/acc"]) == {"value", "low", "high", "n"}
    assert found["pope/adversarial/acc"]["n"] == 4
    assert main([*score, "--json", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*score, "--json", str(out), "--overwrite", "--parser", "lmms-eval"]) == 0
    assert json.loads(out.read_text())["pope/adversarial/acc"]["value"] == 0.5


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"pope/adversarial/0": "Yes"}, r"3 of 4 questions of pope have no answer \(first: 'pope/adversarial/1'\)"),
        ({"pope/adversarial/9": "Yes"}, r"1 of 1 answers are to no question of pope \(first: 'pope/adversarial/9'\)"),
    ],
)
def test_answers_that_do_not_fit(data: Path, texts: dict[str, str], message: str) -> None:
    items = POPE.read(data / "pope", PictureFolder(None, "nowhere"))
    with pytest.raises(ValueError, match=message):
        answers_of(POPE, items, texts, "official")


@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        (b"{", r"not JSON \(Expecting property name .* at character 2\)"),
        (b'{"id": "\xff"}', "not UTF-8"),
        (b"3", "not an object but the number 3"),
        (b'{"text": "yes"}', "no id, only text"),
        (b'{"id": null, "text": "yes"}', "the id is no text but null"),
        (b'{"id": "b"}', "no text and no scores for 'b'"),
        (b'{"id": "b", "text": null}', "the text of 'b' is not a string but null; a model that says nothing has .*"),
        (b'{"id": "b", "text": 4}', "the text of 'b' is not a string but the number 4"),
        (b'{"id": "b", "text": ["yes"]}', r"the text of 'b' is not a string but a list \[\"yes\"\]"),
        (b'{"id": "b", "text": "a", "truncated": 1}', "truncated of 'b' is not true or false but the number 1"),
        (b'{"id": "b", "text": "yes", "scores": [1, 2]}', "both a text and scores for 'b'"),
        (b'{"id": "b", "scores": []}', "the scores of 'b' are an empty list"),
        (b'{"id": "b", "scores": [1, "2"]}', "score 1 of 'b' is not a number but a text \"2\""),
        (b'{"id": "b", "scores": [1, NaN]}', "score 1 of 'b' is NaN"),
        (b'{"id": "b", "scores": [1, true]}', "score 1 of 'b' is not a number but true"),
        (b'{"id": "b", "scores": 1}', "the scores of 'b' are not a list but the number 1"),
    ],
)
def test_lines_that_are_no_answers(tmp_path: Path, bad: bytes, cause: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'{"id": "a", "text": ""}\n\n' + bad + b"\n")
    with pytest.raises(
        ValueError, match=rf'answers.jsonl, line 3: {cause}; an answer is {{"id": ..., "text": "..."}}'
    ):
        read_answers(path)


def test_a_second_answer_and_no_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": "b", "text": ""}\n{"id": "a", "text": ""}\n{"id": "a", "text": "again"}\n')
    with pytest.raises(ValueError, match="line 3: a second answer to 'a'; the first is in line 2"):
        read_answers(path)
    with pytest.raises(FileNotFoundError, match="no file of answers"):
        read_answers(tmp_path / "none.jsonl")


def test_lost_answers_are_warned_of_and_can_fail_the_command(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": f"pope/adversarial/{n}", "text": text} for n, text in enumerate(("Yes.", "hm", "", "No, because"))]
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    score = ("eval", "score", "pope", "--data", str(data), "--answers", str(path))
    assert main(score) == 0
    said = capsys.readouterr().out
    assert "WARNING  POPE, answers.jsonl: 50.0 % of the written answers could not be read" in said
    assert "(25.0 % were empty)" in said
    assert "were cut at the limit" not in said
    assert "the official ones" in said
    with pytest.raises(SystemExit, match="3"):
        main([*score, "--fail-on-lost"])
    path.write_text("\n".join(json.dumps(row | {"text": "Yes", "truncated": True}) for row in rows))
    capsys.readouterr()
    with pytest.raises(SystemExit, match="3"):
        main([*score, "--fail-on-lost"])
    said = capsys.readouterr().out
    assert "WARNING  POPE, answers.jsonl: 100.0 % of the written answers were cut at the limit" in said
    path.write_text("\n".join(json.dumps(row | {"text": "Yes"}) for row in rows))
    assert main([*score, "--fail-on-lost"]) == 0
    assert "WARNING" not in capsys.readouterr().out


def test_rows_of_scores_in_place_of_texts(data: Path, tmp_path: Path) -> None:
    items = POPE.read(data / "pope", PictureFolder(None, "nowhere"))
    rows = ([2, -1.5], [-3, -2], [0, 0], [1, 0])
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(json.dumps({"id": i.id, "scores": row}) for i, row in zip(items, rows, strict=True)))
    given = read_answers(path)
    assert given[items[0].id] == (2.0, -1.5)
    found = answers_of(POPE, items, given, "official")
    assert [found[item.id].choice for item in items] == ["yes", "no", None, "yes"]
    assert [found[item.id].right for item in items] == [True, True, False, False]
    measures = {key: measure.metric.value() for key, measure in measures_of(POPE, items, given, "official").items()}
    assert measures["pope/adversarial/acc"] == 0.5
    assert measures["pope/adversarial/tied"] == 0.25
    assert "pope/adversarial/invalid" not in measures
    # A file may mix both; what is a text is read, and shares count them all.
    mixed = given | {items[2].id: "I cannot tell"}
    measures = {key: measure.metric.value() for key, measure in measures_of(POPE, items, mixed, "official").items()}
    assert measures["pope/adversarial/abstained"] == 0.25
    with pytest.raises(ValueError, match=r"'pope/adversarial/0' has 3 scores instead of 2, one per choice"):
        answers_of(POPE, items, given | {items[0].id: (1.0, 2.0, 3.0)}, "strict")
    open_one = replace(items[0], choices=(), answer="")
    with pytest.raises(ValueError, match="'pope/adversarial/0' is an open question"):
        answers_of(POPE, [open_one], {open_one.id: (1.0, 2.0)}, "strict")


def test_commands_name_what_is_not_there(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: str) -> str:
        assert main(["eval", *arguments]) == 2
        return capsys.readouterr().err

    assert f"no benchmark is called 'poppe'; there are {', '.join(BENCHMARKS)}" in refused("questions", "poppe")
    assert "Put the annotations of mmvp there" in refused("questions", "mmvp", "--data", str(data))
    monkeypatch.delenv("MLLM_ALIGN_DATA", raising=False)
    assert "with --data or MLLM_ALIGN_DATA" in refused("questions", "pope")
    ask = ("run", "demo-base", "--benchmark", "pope", "--output", "out")
    said = refused(*ask)
    assert "--images is missing: pope needs its pictures. Get them (COCO val2014, http" in said
    assert "name it with --images FOLDER" in said
    said = refused(*ask, "--data", str(data), "--images", str(data / "val2014"))
    assert f"no folder {data / 'val2014'}: put the images there (0.jpg and so on), from COCO val2014" in said
    (data / "val2014").mkdir()
    said = refused(*ask, "--data", str(data), "--images", str(data / "val2014"))
    assert "2 of 2 images are not in" in said
    assert "get them from COCO val2014, http://images.cocodataset.org/zips/val2014.zip and put them there" in said
    (data / "val2014" / "0.jpg").touch()
    said = refused(*ask, "--data", str(data), "--images", str(data))
    assert f"name {data / 'val2014'} with --images" in said


def test_what_the_help_says() -> None:
    assert ", ".join(sorted(BENCHMARKS)) == NAMES
    assert ", ".join(sorted(name for name, each in BENCHMARKS.items() if each.ties is not None)) == encoders.NAMES
    assert PARSERS == benchmark.PARSERS


def test_questions_about_several_pictures_and_none(data: Path) -> None:
    items: list[Any] = POPE.read(data / "pope", PictureFolder(None, "nowhere"))
    shown = [{**vars(items[0]), "pictures": pictures} for pictures in ((), items[0].pictures * 2)]
    none, two = questions_of([type(items[0])(**fields) for fields in shown])
    assert none["image"] is None
    assert two["image"] == ["0.jpg", "0.jpg"]


def test_a_byte_order_mark_and_odd_line_separators_in_texts(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    rows = [{"id": "a", "text": "one\u2028two"}, {"id": "b", "text": "x\u0085y"}]
    path.write_text("\ufeff" + "\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert read_answers(path) == {"a": "one\u2028two", "b": "x\u0085y"}
