"""Winoground: the published schema, and the authors' three comparisons written as a loop."""

from __future__ import annotations

import json
import random

import pytest
from PIL import Image

from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.winoground import IMAGES, WINOGROUND, hub_items
from mllm_align_eval.scoring import measures_of

TAGS = ("Object", "Relation", "Both")


def row(number):
    return {
        "id": number,
        "image_0": f"ex_{number}_img_0",
        "image_1": f"ex_{number}_img_1",
        "caption_0": "some plants surrounding a lightbulb",
        "caption_1": "a lightbulb surrounding some plants",
        "tag": "Adjective-Weight",
        "secondary_tag": "",
        "num_main_preds": 1,
        "collapsed_tag": TAGS[number % 3],
    }


@pytest.fixture
def items(tmp_path):
    (tmp_path / "examples.jsonl").write_text("\n".join(json.dumps(row(number)) for number in range(60)))
    return WINOGROUND.read(tmp_path, PictureFolder(None, IMAGES))


def values(measures):
    return {key: measure.metric.value() for key, measure in measures.items()}


def loop(scores, numbers):
    text = image = group = 0
    for number in numbers:
        c0_i0, c1_i0 = scores[f"winoground/{number}/image_0"]
        c0_i1, c1_i1 = scores[f"winoground/{number}/image_1"]
        text_right = c0_i0 > c1_i0 and c1_i1 > c0_i1
        image_right = c0_i0 > c0_i1 and c1_i1 > c1_i0
        text, image, group = text + text_right, image + image_right, group + (text_right and image_right)
    return [count / len(numbers) for count in (text, image, group)]


def test_the_schema(items):
    assert [item.id for item in items[:3]] == ["winoground/0/image_0", "winoground/0/image_1", "winoground/1/image_0"]
    assert items[1].pictures[0].name == "ex_0_img_1.png"
    assert (items[0].answer, items[1].answer) == items[0].choices
    assert items[0].cluster == items[1].cluster == items[0].pair


@pytest.mark.parametrize("parser", ["strict", "official"])
def test_the_three_scores(items, parser):
    rng = random.Random(0)
    scores = {item.id: [rng.randint(0, 4), rng.randint(0, 4)] for item in items}
    found = values(measures_of(WINOGROUND, items, scores, parser))
    names = ("text", "image", "group")
    assert [found[f"winoground/{name}"] for name in names] == pytest.approx(loop(scores, range(60)), abs=1e-12)
    for place, tag in enumerate(TAGS):
        expected = loop(scores, range(place, 60, 3))
        assert [found[f"winoground/{tag.lower()}/{name}"] for name in names] == pytest.approx(expected, abs=1e-12)


def test_constant_and_perfect_scores(items):
    constant = values(measures_of(WINOGROUND, items, {item.id: [0.5, 0.5] for item in items}, "official"))
    assert constant["winoground/text"] == constant["winoground/image"] == constant["winoground/group"] == 0
    assert constant["winoground/pairs/tied"] == 1
    perfect = {item.id: [float(choice == item.answer) for choice in item.choices] for item in items}
    assert values(measures_of(WINOGROUND, items, perfect, "strict"))["winoground/group"] == 1
    # What is normalised within an image can have every text right and no image.
    shifted = {name: [s + 5 * name.endswith("image_1") for s in pair] for name, pair in perfect.items()}
    found = values(measures_of(WINOGROUND, items, shifted, "strict"))
    assert (found["winoground/text"], found["winoground/image"]) == (1, 0)
    # Level across the images, though within each image one caption is best.
    across = {item.id: [1.0, 0.0] for item in items[:2]} | {name: pair for name, pair in list(perfect.items())[2:]}
    found = values(measures_of(WINOGROUND, items, across, "strict"))
    assert found["winoground/pairs/tied"] == pytest.approx(1 / 60)
    assert found["winoground/group"] == pytest.approx(59 / 60)


def test_the_hubs_rows(items):
    shown = [Image.new("RGBA", (4, 5 + side)) for side in (0, 1)]
    found = hub_items([row(number) | {f"image_{side}": shown[side] for side in (0, 1)} for number in range(3)])
    assert [item.id for item in found] == [item.id for item in items[:6]]
    assert [item.choices for item in found] == [item.choices for item in items[:6]]
    assert (found[1].pictures[0].load().size, found[1].pictures[0].load().mode) == ((4, 6), "RGB")


def test_files_of_another_shape(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"examples\.jsonl: get it from .*facebook/winoground"):
        WINOGROUND.read(tmp_path, PictureFolder(None, IMAGES))
    (tmp_path / "examples.jsonl").write_text(json.dumps(row(0)) + "\n" + json.dumps(row(1) | {"caption_1": None}))
    with pytest.raises(ValueError, match="line 2: not an object with the texts"):
        WINOGROUND.read(tmp_path, PictureFolder(None, IMAGES))
