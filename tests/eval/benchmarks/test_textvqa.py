"""TextVQA: the published schema, and its accuracy as the evaluator's loop."""

from __future__ import annotations

import json
import random

import pytest
from PIL import Image

from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.textvqa import TEXTVQA, textvqa_hub_items
from mllm_align_eval.scoring import measures_of
from mllm_align_eval.text_metrics import vqa_normalise, vqa_normalise_vlmevalkit

NO_PICTURES = PictureFolder(None, "nowhere")
POOL = (
    "Nokia",
    "nokia.",
    "the nokia",
    "3",
    "three",
    "3.",
    "dont walk",
    "don't walk",
    "unanswerable",
    "Levi's",
    "levis",
)


def row(number, rng=None):
    rng = rng or random.Random(number)
    return {
        "question": "what is the brand of phone?",
        "image_id": f"0054c91397f2fe0{number // 2}",
        "image_classes": ["Belt"],
        "flickr_original_url": "",
        "flickr_300k_url": "",
        "image_width": 1024,
        "image_height": 730,
        "answers": [rng.choice(POOL[:4] if number % 2 else POOL) for _ in range(10)],
        "question_tokens": ["what"],
        "question_id": 34602 + number,
        "set_name": "val",
    }


@pytest.fixture
def items(tmp_path):
    content = {"dataset_type": "val", "dataset_name": "textvqa", "data": [row(n) for n in range(60)]}
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps(content))
    return TEXTVQA.read(tmp_path, NO_PICTURES)


@pytest.mark.parametrize("parser", ["strict", "official", "lmms-eval", "vlmevalkit"])
def test_accuracy_is_that_of_the_evaluator(items, parser):
    plain = vqa_normalise_vlmevalkit if parser == "vlmevalkit" else vqa_normalise
    rng = random.Random(7)
    texts = {item.id: rng.choice([*POOL, "", " nokia \n", "Nokia!"]) for item in items}
    total = 0.0
    for number, item in enumerate(items):
        answers, said = [plain(answer) for answer in row(number)["answers"]], plain(texts[item.id])
        scores = []
        for left_out in range(10):
            matching = [answers[other] for other in range(10) if other != left_out and answers[other] == said]
            scores.append(min(1, float(len(matching)) / 3))
        total += sum(scores) / len(scores)
    found = measures_of(TEXTVQA, items, texts, parser)
    assert found["textvqa/acc"].metric.value() == pytest.approx(total / 60, abs=1e-12)


def test_unanimous_and_empty(items, tmp_path):
    rows = [row(0) | {"answers": ["Nokia"] * 10}]
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": rows}))
    (only,) = TEXTVQA.read(tmp_path, NO_PICTURES)
    for text, value in (("nokia", 1), ("The Nokia.", 1), ("", 0), ("phone", 0)):
        assert measures_of(TEXTVQA, [only], {only.id: text}, "strict")["textvqa/acc"].metric.value() == value


def test_the_schema_and_the_hubs_rows(items):
    assert items[0].id == "textvqa/34602"
    assert items[0].prompt == "what is the brand of phone?\nAnswer the question using a single word or phrase."
    assert items[0].pictures[0].name == "0054c91397f2fe00.jpg"
    assert items[0].cluster == items[1].cluster
    found = textvqa_hub_items([row(n) | {"image": Image.new("L", (3, 4))} for n in range(3)])
    assert [(i.id, i.cluster, i.truth) for i in found] == [(i.id, i.cluster, i.truth) for i in items[:3]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": ["a"] * 9}, "question 0: no list of ten answers"),
        ({"question": 3}, "question 0: no question_id and question"),
        ({"image_id": None}, "question 0: no image_id"),
    ],
)
def test_files_of_another_shape(tmp_path, change, message):
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": [row(0) | change]}))
    with pytest.raises(ValueError, match=message):
        TEXTVQA.read(tmp_path, NO_PICTURES)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"TextVQA_0\.5\.1_val\.json: get it from https://textvqa"):
        TEXTVQA.read(tmp_path, NO_PICTURES)
