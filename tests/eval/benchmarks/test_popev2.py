"""POPEv2: its real file, and its metrics against a plain loop."""

from __future__ import annotations

import json
import math
import random
from collections import Counter

import pytest
from PIL import Image

from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.popev2 import IMAGES, POPEV2, popev2_hub_items, popev2_items
from mllm_align_eval.measures import accuracies
from mllm_align_eval.scoring import measures_of

NO_PICTURES = PictureFolder(None, IMAGES)
PAIR = [
    {
        "image_id": 7,
        "image_name": f"/{folder}/7.jpg",
        "target_object": "cup",
        "query": "Is there a cup?",
        "label": label,
    }
    for folder, label in (("images", "No"), ("coco/train2017", "Yes"))
]


@pytest.fixture(scope="module")
def items(data_dir):
    return popev2_items(data_dir / "pope", NO_PICTURES)


def test_the_real_file(items):
    assert Counter((item.kind, item.answer) for item in items) == {("original", "yes"): 500, ("edited", "no"): 500}
    assert set(Counter(item.pair for item in items).values()) == {2}
    assert items[0].prompt.startswith("Is there a remote in the image?\n")
    assert [item.pictures[0].name for item in items[:2]] == [
        "images/000000046207.jpg",
        "coco/train2017/000000046207.jpg",
    ]
    assert accuracies(items, {item.id: 1.0 for item in items})["popev2/pair_acc"].metric.value() == 1


def test_metrics_are_those_of_a_loop(items):
    rng = random.Random(0)
    texts = {item.id: rng.choice(["Yes", "No", "yes.", ""]) for item in items}
    found = measures_of(POPEV2, items, texts, "strict")
    tp = fp = fn = right = yes = both = 0
    for first, second in zip(items[::2], items[1::2], strict=True):
        hits = 0
        for item in (first, second):
            answer = texts[item.id].lower().strip(".")
            hits += answer == item.answer
            yes += answer == "yes"
            tp += answer == "yes" == item.answer
            fp += answer == "yes" != item.answer
            fn += answer != "yes" == item.answer
        right += hits
        both += hits == 2
    expected = {"acc": right / 1000, "pair_acc": both / 500, "yes_rate": yes / 1000}
    expected |= {"precision": tp / (tp + fp), "recall": tp / (tp + fn), "f1": 2 * tp / (2 * tp + fp + fn)}
    expected["original/acc"] = tp / 500
    for key, value in expected.items():
        assert found[f"popev2/{key}"].metric.value() == pytest.approx(value, abs=1e-12), key


def test_constant_answers(items):
    found = measures_of(POPEV2, items, {item.id: "No" for item in items}, "strict")
    assert [found[f"popev2/{key}"].metric.value() for key in ("acc", "pair_acc", "edited/acc", "f1")] == [0.5, 0, 1, 0]
    assert math.isnan(found["popev2/precision"].metric.value())
    half = measures_of(POPEV2, items[:1], {items[0].id: "No"}, "strict")
    assert "popev2/pair_acc" not in half


def test_the_copy_on_the_hub():
    row = {"normal_image": Image.new("L", (3, 2)), "counterfactual_image": Image.new("L", (4, 2))}
    row |= {"question": "Is there a cup?", "normal_label": "Yes", "counterfactual_label": "No", "image_id": 7}
    original, edited = popev2_hub_items([row])
    assert (original.id, edited.id) == ("popev2/7/original", "popev2/7/edited")
    assert [item.pictures[0].load().size for item in (original, edited)] == [(3, 2), (4, 2)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([PAIR[0], {**PAIR[1], "label": "maybe"}], "entry 1: not a question with image_id"),
        ([PAIR[0]], "image 7 is not asked about once with the label Yes and once with No"),
        ([PAIR[0], PAIR[0]], "image 7 is not asked about once"),
        ({}, "is not a list of questions"),
    ],
)
def test_another_file(tmp_path, rows, message):
    (tmp_path / "popev2_annotations.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message):
        popev2_items(tmp_path, NO_PICTURES)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"popev2_annotations.json: get it from .*Monosail/POPEv2"):
        popev2_items(tmp_path, NO_PICTURES)
