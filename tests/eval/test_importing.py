"""Files of other harnesses: their samples and tables become answers to our questions, or an error says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mllm_align.cli import main
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.mmvp import MMVP
from mllm_align_eval.benchmarks.pope import POPE
from mllm_align_eval.importing import import_texts

QUESTIONS = [
    ("adversarial", "dog", "yes"),
    ("adversarial", "cat", "no"),
    ("random", "dog", "yes"),
    ("random", "cup", "no"),
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "pope"
    folder.mkdir()
    for split in ("adversarial", "random"):
        rows = [
            {"question_id": n, "image": "COCO_1.jpg", "text": f"Is there a {thing} in the image?", "label": label}
            for n, (own, thing, label) in enumerate(QUESTIONS)
            if own == split
        ]
        (folder / f"coco_pope_{split}.json").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def sample(number: int, said: str, **changes: Any) -> dict[str, Any]:
    split, thing, label = QUESTIONS[number]
    doc = {
        "question_id": str(number),
        "question": f"Is there a {thing} in the image?",
        "answer": label,
        "image_source": "COCO_1",
        "category": split,
    }
    found = {"doc_id": number, "doc": {**doc, **changes}, "target": label, "resps": [[said + " "]]}
    return {**found, "filtered_resps": [said], "doc_hash": "44136fa3"}


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def pope(data: Path) -> list[Any]:
    return POPE.read(data / "pope", PictureFolder(None, "nowhere"))


def test_samples_of_lmms_eval(data: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "samples.jsonl", [sample(n, said) for n, said in enumerate(["yes", "no", "Yes.", ""])])
    texts = import_texts(path, "lmms-eval", "pope", pope(data))
    assert texts == {
        "pope/adversarial/0": "yes",
        "pope/adversarial/1": "no",
        "pope/random/2": "Yes.",
        "pope/random/3": "",
    }
    out = tmp_path / "scores.json"
    command = ["eval", "score", "pope", "--data", str(data), "--answers", str(path), "--format", "lmms-eval"]
    assert main([*command, "--parser", "lmms-eval", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["pope/random/acc"]["value"] == 0


def test_tables_of_vlmevalkit(data: Path, tmp_path: Path) -> None:
    lines = ["index\timage_path\tquestion\tcategory\tanswer\tprediction"]
    for number, (split, thing, label) in enumerate(QUESTIONS):
        said = "" if number == 3 else label.capitalize()
        lines.append(f"{number}\tCOCO_1.jpg\tIs there a {thing} in the image?\t{split}\t{label.capitalize()}\t{said}")
    path = tmp_path / "model_POPE.tsv"
    path.write_text("\n".join(lines))
    texts = import_texts(path, "vlmevalkit", "pope", pope(data))
    assert list(texts.values()) == ["Yes", "No", "Yes", ""]
    (tmp_path / "other.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(ValueError, match="no column 'prediction'"):
        import_texts(tmp_path / "other.tsv", "vlmevalkit", "pope", pope(data))


def test_mmvp_by_its_numbers(tmp_path: Path) -> None:
    (tmp_path / "Questions.csv").write_text(
        "Index,Question,Options,Correct Answer\n1,Open?,(a) Open (b) Closed,(a)\n2,Open?,(a) Open (b) Closed,(b)\n"
    )
    items = MMVP.read(tmp_path, PictureFolder(None, "nowhere"))
    rows = [
        {"doc_id": n, "doc": {"Index": n + 1, "answer": "(a)" if n == 0 else "Closed"}, "resps": [["A"]]}
        for n in (0, 1)
    ]
    path = written(tmp_path / "samples.jsonl", rows)
    assert import_texts(path, "lmms-eval", "mmvp", items) == {"mmvp/1": "A", "mmvp/2": "A"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([sample(0, "yes"), sample(0, "no")], "line 2: a second answer to 'pope/adversarial/0'"),
        ([sample(0, "yes", answer="no")], "the truth of 'pope/adversarial/0' is 'no' there and 'yes' here"),
        ([sample(0, "yes", question="Is there a bus in the image?")], "line 1: an answer to no question of pope"),
        ([{"doc_id": 0}], "line 1: no(t a)? sample of lmms-eval"),
    ],
)
def test_what_does_not_fit(data: Path, tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        import_texts(written(tmp_path / "s.jsonl", rows), "lmms-eval", "pope", pope(data))


def test_what_is_not_known_here(data: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "s.jsonl", [])
    with pytest.raises(ValueError, match="no format 'other'; use lmms-eval, vlmevalkit"):
        import_texts(path, "other", "pope", [])
    with pytest.raises(ValueError, match="answers of lmms-eval to chair cannot be told apart"):
        import_texts(path, "lmms-eval", "chair", [])
    with pytest.raises(FileNotFoundError, match="no file of answers"):
        import_texts(tmp_path / "none", "lmms-eval", "pope", [])


def test_one_row_of_vlmevalkit_may_be_of_several_splits(data: Path, tmp_path: Path) -> None:
    items = POPE.read(data / "pope", PictureFolder(None, "nowhere"))
    head = ("index", "category", "image_path", "question", "answer", "prediction")
    rows = [
        (0, "adversarial,random", "COCO_1.jpg", "Is there a dog in the image?", "Yes", "Yes"),
        (1, "adversarial", "COCO_1.jpg", "Is there a cat in the image?", "No", "no."),
        (2, "random", "COCO_1.jpg", "Is there a cup in the image?", "No", "Yes"),
    ]
    table = tmp_path / "table.tsv"
    table.write_text("\n".join("\t".join(map(str, row)) for row in (head, *rows)))
    texts = import_texts(table, "vlmevalkit", "pope", items)
    assert sorted(texts.values()) == ["Yes", "Yes", "Yes", "no."]
    table.write_text("\n".join("\t".join(str(cell) for n, cell in enumerate(row) if n != 2) for row in (head, *rows)))
    with pytest.raises(ValueError, match="row 1: does not say which question of pope it answers; there is index, cat"):
        import_texts(table, "vlmevalkit", "pope", items)


def test_splits_without_any_answer_are_left_out_and_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = POPE.read(data / "pope", PictureFolder(None, "nowhere"))
    answers = tmp_path / "answers.jsonl"
    some = [item for item in items if item.split == "random"]
    answers.write_text("\n".join(json.dumps({"id": item.id, "text": "No"}) for item in some))
    scores = tmp_path / "scores.json"
    command = ["eval", "score", "pope", "--data", str(data), "--answers", str(answers), "--json", str(scores)]
    assert main(command) == 0
    assert "nothing was answered of adversarial: not scored" in capsys.readouterr().err
    assert {key.split("/")[1] for key in json.loads(scores.read_text())} == {"random"}
    answers.write_text(json.dumps({"id": some[0].id, "text": "No"}))
    assert main([*command, "--overwrite"]) == 2
    assert "1 of 2 questions of pope have no answer" in " ".join(capsys.readouterr().err.split())
