"""POPE: its real files, and its published metrics against plain transcriptions of each harness's script."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from PIL import Image

from mllm_align_eval.baselines import baselines
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.pope import IMAGES, POPE, SPLITS, pope_hub_items, pope_items
from mllm_align_eval.scoring import measures_of

LINE = '{"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "yes"}\n'
NO_PICTURES = PictureFolder(None, IMAGES)
TEXTS = (
    "Yes",
    "No",
    "no.",
    "Yes, there is a dog.",
    "There is not. Yes",
    "",
    "I cannot tell",
    "yes and no",
    "NO",
    "Yes.",
)


@pytest.fixture(scope="module")
def items(data_dir):
    return pope_items(data_dir / "pope", NO_PICTURES)


def test_the_real_files(items):
    assert Counter(item.split for item in items) == dict.fromkeys(SPLITS, 3000)
    assert Counter((item.split, item.answer) for item in items) == {
        (split, answer): 1500 for split in SPLITS for answer in ("yes", "no")
    }
    assert len({item.cluster for item in items}) == 500
    assert len({(item.cluster, item.prompt) for item in items}) == 5127
    assert len({item.id for item in items}) == 9000
    assert items[0].prompt == "Is there a snowboard in the image?\nAnswer the question using a single word or phrase."


def test_baselines_of_the_real_files(items):
    found = baselines(items)
    assert found["always yes"]["pope/popular/acc"] == 0.5
    assert found["text only"]["pope/popular/acc"] == pytest.approx(0.868, abs=0.015)
    assert found["text only"]["pope/random/acc"] == pytest.approx(0.695, abs=0.02)


def loop(items: list[Any], texts: dict[str, str], parser: str) -> dict[str, float]:
    """One split by loops over the harness's own rule."""
    tp = fp = tn = fn = right = yes = 0
    for item in items:
        text = texts[item.id]
        if parser == "official":
            first = text[: text.index(".")] if "." in text else text
            words = first.replace(",", "").split(" ")
            said = "no" if "No" in words or "not" in words or "no" in words else "yes"
        else:
            said = text.lower().strip()
        right += said == item.answer
        yes += said == "yes"
        if said == "yes":
            tp, fp = tp + (item.answer == "yes"), fp + (item.answer == "no")
        elif said == "no":
            tn, fn = tn + (item.answer == "no"), fn + (item.answer == "yes")
    precision = tp / (tp + fp) if tp + fp else math.nan
    recall = tp / (tp + fn) if tp + fn else math.nan
    harmonic = 2 * precision * recall / (precision + recall)
    return {
        "acc": right / len(items),
        "precision": precision,
        "recall": recall,
        "f1": harmonic,
        "yes_rate": yes / len(items),
    }


@pytest.mark.parametrize("parser", ["official", "lmms-eval"])
def test_metrics_are_those_of_the_scripts(items, parser):
    texts = {item.id: TEXTS[hash((i * i, i % 7)) % len(TEXTS)] for i, item in enumerate(items)}
    found = measures_of(POPE, items, texts, parser)
    f1s = []
    for split in SPLITS:
        expected = loop([item for item in items if item.split == split], texts, parser)
        f1s.append(expected["f1"])
        for name, value in expected.items():
            assert found[f"pope/{split}/{name}"].metric.value() == pytest.approx(value, abs=1e-12), name
    assert found["pope/f1_mean3"].metric.value() == pytest.approx(sum(f1s) / 3, abs=1e-12)
    for name, value in loop(items, texts, parser).items():
        assert found[f"pope/{name}"].metric.value() == pytest.approx(value, abs=1e-12), name


def test_perfect_constant_and_empty_answers(items):
    perfect = measures_of(POPE, items, {item.id: item.answer.capitalize() for item in items}, "official")
    assert all(perfect[f"pope/{split}/{name}"].metric.value() == 1 for split in SPLITS for name in ("acc", "f1"))
    always_no = measures_of(POPE, items, {item.id: "No" for item in items}, "official")
    assert math.isnan(always_no["pope/random/precision"].metric.value())
    assert always_no["pope/random/f1"].metric.value() == 0
    # The share of yes is that of the answers, never that of the labels.
    assert always_no["pope/random/yes_rate"].metric.value() == 0
    nothing = {item.id: "" for item in items}
    assert measures_of(POPE, items, nothing, "official")["pope/popular/yes_rate"].metric.value() == 1
    strict = measures_of(POPE, items, nothing, "strict")
    assert strict["pope/popular/acc"].metric.value() == 0
    assert strict["pope/popular/invalid"].metric.value() == 1


def test_missing_images_are_one_message(data_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"500 of 500 images are not in .*COCO val2014"):
        pope_items(data_dir / "pope", PictureFolder(tmp_path, IMAGES))


def test_missing_annotations(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"coco_pope_random.json: get it from https://github.com/AoiDragon"):
        pope_items(tmp_path, NO_PICTURES)


@pytest.mark.parametrize("bad", ["{broken", '{"image": "a.jpg"}', LINE.replace('"yes"', '"maybe"'), "[1, 2]"])
def test_a_line_that_is_no_question(tmp_path, bad):
    (tmp_path / "coco_pope_random.json").write_text(LINE + bad.strip() + "\n")
    with pytest.raises(ValueError, match="line 2"):
        pope_items(tmp_path, NO_PICTURES)


def test_an_image_is_read_when_it_is_needed(tmp_path):
    (tmp_path / "coco_pope_random.json").write_text(LINE)
    Image.new("L", (9, 7)).save(tmp_path / "a.jpg")
    (item,) = pope_items(tmp_path, PictureFolder(tmp_path, IMAGES))
    shown = item.pictures[0].load()
    assert (shown.mode, shown.size) == ("RGB", (9, 7))
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read the image .*a\.jpg"):
        item.pictures[0].load()
    with pytest.raises(FileNotFoundError, match=r"a\.jpg is needed and no folder of images was named.*COCO val2014"):
        pope_items(tmp_path, NO_PICTURES)[0].pictures[0].load()


def test_the_copy_on_the_hub():
    picture = Image.new("RGB", (3, 3))
    rows = [
        {"id": "0", "question_id": "7", "question": "Is there a dog in the image?", "answer": "no", "image": picture}
        | {"image_source": "COCO_val2014_000000310196", "category": "popular"}
    ]
    (item,) = pope_hub_items(rows)
    assert (item.id, item.split, item.answer, item.cluster) == (
        "pope/popular/7",
        "popular",
        "no",
        rows[0]["image_source"],
    )
    assert item.prompt == "Is there a dog in the image?\nAnswer the question using a single word or phrase."
    assert item.pictures[0].load().size == (3, 3)
