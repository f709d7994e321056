"""DocVQA and InfographicVQA: published schemas, and the mean of a loop over questions."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from mllm_align_eval.benchmarks.docvqa import DOCVQA, docvqa_hub_items
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.infovqa import INFOVQA, infovqa_hub_items
from mllm_align_eval.scoring import measures_of
from mllm_align_eval.text_metrics import anls, anls_rrc

NO_PICTURES = PictureFolder(None, "nowhere")
SUFFIX = "\nAnswer the question using a single word or phrase."
ANSWERS = (["0.28"], ["1/8/93", "January 8, 1993"], ["itc limited"], ["ab"])
# Right, right by the second, padded, half, nothing.
TEXTS = ("0.28", "january 8, 1993", "  ITC   Ltd" + " " * 9, "ax", "")


def doc_row(number):
    return {
        "questionId": 49153 + number,
        "question": f"What is the value {number}?",
        "question_types": ["figure/diagram"] if number % 2 else ["table/list", "form"],
        "image": f"documents/pybv0228_{number // 2}.png",
        "docId": 14465,
        "ucsf_document_id": "pybv0228",
        "ucsf_document_page_no": str(number // 2),
        "answers": ANSWERS[number % 4],
        "data_split": "val",
    }


def info_row(number):
    return {
        "questionId": 98313 + number,
        "question": f"How many {number}?",
        "image_local_name": f"{37313 + number // 2}.jpeg",
        "image_url": f"https://example.org/{number // 2}.jpg",
        "ocr_output_file": "37313.json",
        "answers": ANSWERS[number % 4],
        "answer_type": ["single span"],
        "evidence": ["text", "figure"] if number % 2 else [],
        "operation/reasoning": ["counting"] if number % 3 else [],
        "data_split": "val",
    }


CASES = [
    (DOCVQA, "val_v1.0_withQT.json", doc_row, docvqa_hub_items),
    (INFOVQA, "infographicsVQA_val_v1.0_withQT.json", info_row, infovqa_hub_items),
]
both = pytest.mark.parametrize(("benchmark_", "file", "row", "from_hub"), CASES, ids=["docvqa", "infovqa"])


def write(path, rows):
    path.write_text(json.dumps({"dataset_name": "x", "dataset_version": "1.0", "dataset_split": "val", "data": rows}))


@both
@pytest.mark.parametrize("parser", ["strict", "official", "lmms-eval", "vlmevalkit"])
def test_anls_is_the_mean_of_a_loop(tmp_path, benchmark_, file, row, from_hub, parser):
    write(tmp_path / file, [row(n) for n in range(20)])
    items = benchmark_.read(tmp_path, NO_PICTURES)
    texts = {item.id: TEXTS[n % 5] for n, item in enumerate(items)}
    found = {key: m.metric.value() for key, m in measures_of(benchmark_, items, texts, parser).items()}
    total, groups = 0.0, {}
    for n, item in enumerate(items):
        text, answers = texts[item.id], ANSWERS[n % 4]
        if parser == "strict":
            score = anls(text, answers)
        else:
            score = anls_rrc(text.strip() if parser == "lmms-eval" else text, answers)
        total += score
        columns = ("question_types", "answer_type", "evidence", "operation/reasoning")
        for name in [name for column in columns for name in row(n).get(column, [])]:
            groups.setdefault(name.replace("/", "_").replace(" ", "_"), []).append(score)
    name = benchmark_.name
    assert found[f"{name}/anls"] == pytest.approx(total / 20, abs=1e-12)
    for group, scores in groups.items():
        assert found[f"{name}/{group}/anls"] == pytest.approx(sum(scores) / len(scores), abs=1e-12)
    assert found[f"{name}/validation/invalid"] == 0.2


@both
def test_the_parsers_differ_where_they_should(tmp_path, benchmark_, file, row, from_hub):
    write(tmp_path / file, [row(3) | {"answers": ["abc"]}])
    items = benchmark_.read(tmp_path, NO_PICTURES)
    padded = {items[0].id: "xyz" + " " * 60}
    key = f"{benchmark_.name}/anls"
    found = {p: measures_of(benchmark_, items, padded, p)[key].metric.value() for p in benchmark_.parsers}
    assert found == {"strict": 0, "official": 1 - 3 / 63, "lmms-eval": 0, "vlmevalkit": 1 - 3 / 63}


@both
def test_the_schema_and_the_hubs_rows(tmp_path, benchmark_, file, row, from_hub):
    write(tmp_path / file, [row(n) for n in range(4)])
    items = benchmark_.read(tmp_path, NO_PICTURES)
    assert items[0].id == f"{benchmark_.name}/{row(0)['questionId']}"
    assert items[0].prompt == row(0)["question"] + SUFFIX
    assert items[0].cluster == items[1].cluster != items[2].cluster
    rows = [{key: value for key, value in row(n).items() if key != "image"} for n in range(4)]
    found = from_hub([entry | {"image": Image.new("L", (3, 4))} for entry in rows])
    assert [item.id for item in found] == [item.id for item in items]
    assert [item.truth for item in found] == [item.truth for item in items]
    assert len({item.cluster for item in found}) == 2
    assert found[0].pictures[0].load().mode == "RGB"


@both
def test_files_of_another_shape(tmp_path, benchmark_, file, row, from_hub):
    with pytest.raises(FileNotFoundError, match=f"{file}: get it from https://rrc.cvc.uab.es"):
        benchmark_.read(tmp_path, NO_PICTURES)
    write(tmp_path / file, [])
    with pytest.raises(ValueError, match="no list of questions under data"):
        benchmark_.read(tmp_path, NO_PICTURES)
    without = {key: value for key, value in row(1).items() if key != "answers"}
    write(tmp_path / file, [row(0), without])
    with pytest.raises(ValueError, match=r"question 1: no list of answers .only the validation split"):
        benchmark_.read(tmp_path, NO_PICTURES)
    write(tmp_path / file, [row(0) | {"image": None, "image_local_name": None}])
    with pytest.raises(ValueError, match="question 0: no image"):
        benchmark_.read(tmp_path, NO_PICTURES)
