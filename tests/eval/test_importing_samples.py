"""lmms-eval's samples of further benchmarks: found by what their rows say; those of other questions are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mllm_align_eval.benchmarks import BENCHMARKS
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.importing import ORIGINS, import_texts

NOWHERE = PictureFolder(None, "nowhere")
HALLUSION = {
    **{"category": "VS", "subcategory": "chart", "visual_input": "1", "set_id": "0", "figure_id": "1"},
    **{
        "question_id": "2",
        "question": "Is it 2?",
        "gt_answer": "1",
        "gt_answer_details": "It is.",
        "filename": "a.png",
    },
}
DOCVQA = {
    **{"questionId": 49153, "question": "What is the value?", "question_types": [], "image": "documents/a.png"},
    "answers": ["0.28"],
}
TEXTVQA = {"question_id": 34602, "question": "what brand is it?", "image_id": "a", "answers": ["nokia"] * 10}
INFOVQA = {"questionId": 98313, "question": "How many?", "image_local_name": "3.jpeg", "answers": ["4"]}
SCIENCEQA = {
    **{"question": "Which is it?", "choices": ["pear", "plum"], "answer": 1, "hint": "Look.", "image": None},
    **{"subject": "natural science", "grade": "grade3"},
}


def items_of(name: str, folder: Path) -> list[Any]:
    files: dict[str, dict[str, Any]] = {
        "hallusion": {"HallusionBench.json": [HALLUSION]},
        "docvqa": {"val_v1.0_withQT.json": {"data": [DOCVQA]}},
        "textvqa": {"TextVQA_0.5.1_val.json": {"data": [TEXTVQA]}},
        "infovqa": {"infographicsVQA_val_v1.0_withQT.json": {"data": [INFOVQA]}},
        "scienceqa": {"problems.json": {"0": SCIENCEQA | {"split": "test"}}, "pid_splits.json": {"test": ["0"]}},
    }
    for file, content in files[name].items():
        (folder / file).write_text(json.dumps(content))
    return BENCHMARKS[name].read(folder, NOWHERE)


def sample(doc: dict[str, Any], target: Any) -> dict[str, Any]:
    return {"doc_id": 0, "doc": doc, "target": target, "resps": [["said"]], "filtered_resps": ["said"]}


@pytest.mark.parametrize(
    ("name", "doc", "target", "other", "message"),
    [
        (
            "hallusion",
            HALLUSION,
            "It is.",
            {"gt_answer": "0"},
            "the truth of 'hallusion/VS_chart_0_1_2' is 'no' there",
        ),
        (
            "hallusion",
            HALLUSION,
            "It is.",
            {"set_id": "9"},
            r"an answer to no question of hallusion \('VS_chart_9_1_2'",
        ),
        ("hallusion", HALLUSION, "It is.", {"set_id": None}, "does not say which question of hallusion it answers"),
        ("docvqa", DOCVQA, ["0.28"], {"question": "Who?"}, "the question of 'docvqa/49153' is 'Who[?]' there"),
        ("textvqa", TEXTVQA, None, {"question": ""}, "the question of 'textvqa/34602' is '' there"),
        ("infovqa", INFOVQA, ["4"], {"questionId": 1}, r"an answer to no question of infovqa \('1'\)"),
        ("scienceqa", SCIENCEQA, "B", {"choices": ["fig", "plum"]}, "the choices of 'scienceqa/0' are others there"),
        ("scienceqa", SCIENCEQA, "B", {"question": "Which?!"}, "the question of 'scienceqa/0' is 'Which"),
    ],
)
def test_samples(
    name: str, doc: dict[str, Any], target: Any, other: dict[str, Any], message: str, tmp_path: Path
) -> None:
    items = items_of(name, tmp_path)
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(sample(doc, target)))
    assert import_texts(path, "lmms-eval", name, items) == {items[0].id: "said"}
    path.write_text(json.dumps(sample(doc | other, target)))
    with pytest.raises(ValueError, match=message):
        import_texts(path, "lmms-eval", name, items)


def test_another_letter_of_scienceqa(tmp_path: Path) -> None:
    items = items_of("scienceqa", tmp_path)
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(sample(SCIENCEQA, "A")))
    with pytest.raises(ValueError, match="the truth of 'scienceqa/0' is 'A' there and 'B' here"):
        import_texts(path, "lmms-eval", "scienceqa", items)


def test_descriptions_of_amber(data_dir: Path, tmp_path: Path) -> None:
    items = BENCHMARKS["amber"].read(data_dir / "amber", NOWHERE)
    described = next(item for item in items if not item.is_closed)
    doc = {"question_id": int(described.id.split("/")[1]), "truth": list(described.truth["truth"]), "hallu": []}
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(sample(doc, doc["truth"])))
    assert import_texts(path, "lmms-eval", "amber", items) == {described.id: "said"}
    path.write_text(json.dumps(sample(doc | {"truth": ["other"]}, None)))
    with pytest.raises(ValueError, match=f"the objects in the image of '{described.id}' are others there"):
        import_texts(path, "lmms-eval", "amber", items)


def test_formats_that_are_not_known_are_not_guessed(tmp_path: Path) -> None:
    assert all(name in BENCHMARKS for name in ORIGINS)
    with pytest.raises(
        ValueError, match=r"answers of vlmevalkit to docvqa cannot .* pope, mmvp, cvbench, realworldqa can"
    ):
        import_texts(tmp_path / "a.tsv", "vlmevalkit", "docvqa", [])
