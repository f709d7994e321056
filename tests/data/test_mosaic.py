"""Mosaics: which rows come together, where their parts lie, and what reads them."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from mllm_align.contract import Feature, Needs
from mllm_align.data.check import check_dataset
from mllm_align.data.collator import AlignCollator
from mllm_align.data.errors import DataError
from mllm_align.data.images import image_key, load_image
from mllm_align.data.mixing import mix_sources
from mllm_align.data.mosaic import MosaicDataset, MosaicImage, Mosaics, mosaics, seeded, with_mosaics
from mllm_align.data.schema import parse_row
from mllm_align.families import family_of
from mllm_align.vision import RegionWeights
from runs import picture
from tiny import tiny

COLOURS = ("red", "lime", "blue", "yellow", "black", "white", "cyan", "magenta", "gray", "orange")


def rows_of(count: int) -> list[dict[str, Any]]:
    return [
        {"image": Image.new("RGB", (20 + n, 30), colour), "prompt": "?", "chosen": f"{colour} "}
        for n, colour in enumerate(COLOURS[:count])
    ]


def test_every_row_is_there_once_an_epoch() -> None:
    made = mosaics(rows_of(10), sizes=(2, 1))
    # Four, one, four, and the last one for itself.
    assert [len(row["objects"]) for row in made] == [4, 1, 4, 1]
    assert len(made) == 4
    for epoch in range(3):
        texts = [each["text"] for index in range(4) for each in made[index, epoch]["objects"]]
        assert sorted(texts) == sorted(COLOURS)
    assert [len(row["objects"]) for row in mosaics(rows_of(10), sizes=(3, 2))] == [9, 1]
    assert [len(row["objects"]) for row in mosaics(rows_of(3), sizes=4)] == [1, 1, 1]
    with pytest.raises(IndexError):
        made[4]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_region_is_its_row(size: int) -> None:
    """The colour of the picture in a region is the one that its text names; 50 pixels do not go into three parts."""
    made = mosaics(rows_of(10), sizes=size, side=50)
    (first, *_) = made
    image = load_image(first["image"])
    assert image.size == (50, 50)
    pixels = np.asarray(image)
    covered = np.zeros((50, 50), dtype=int)
    for each in parse_row(first).objects["image"]:
        left, top, right, bottom = (round(50 * side) for side in each.box)
        assert (pixels[top:bottom, left:right] == np.asarray(Image.new("RGB", (1, 1), each.text))).all()
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all()


def test_what_comes_together_is_of_seed_and_epoch() -> None:
    def texts(dataset: Any, item: Any) -> list[str]:
        return [each["text"] for each in dataset[item]["objects"]]

    made = mosaics(rows_of(10))
    assert made.by_epoch
    assert texts(made, 0) == texts(made, (0, 0)) == texts(mosaics(rows_of(10)), 0)
    assert texts(made, 0) == texts(pickle.loads(pickle.dumps(made)), 0)
    other = with_mosaics(made, lambda options: seeded(options, 7, once=False))
    assert texts(other, 0) != texts(made, 0) != texts(made, (0, 1))
    assert made.options.seed == 0
    made.set_epoch(1)
    assert [each["text"] for each in next(iter(made))["objects"]] == texts(made, (0, 1))
    once = with_mosaics(made, lambda options: seeded(options, 0, once=True))
    assert not once.by_epoch
    assert texts(once, (0, 5)) == texts(made, 0)
    mixed = mix_sources({"a": made, "b": rows_of(2)})
    assert mixed.by_epoch
    fixed = with_mosaics(mixed, lambda options: seeded(options, 0, once=True))
    assert not fixed.by_epoch
    assert fixed[0]["source"] == "a"
    assert with_mosaics([1], lambda options: options) == [1]


def test_keys_are_of_parts_and_places() -> None:
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    keys = [
        image_key(MosaicImage(parts, side))
        for parts, side in (
            ((red, blue) * 2, 8),
            ((blue, red) * 2, 8),
            ((red, blue) * 2, 10),
            ((red.copy(), blue) * 2, 8),
        )
    ]
    assert [count for _, count in Counter(keys).most_common()] == [2, 1, 1]
    assert keys[0] == keys[3]


def test_a_tiny_model_s_regions_are_the_parts() -> None:
    model, processor = tiny("qwen2_5_vl")
    family = family_of(model)
    features = (Feature("r", "projector", "image", None, "regions"), Feature("t", "text", "image", None, "regions"))
    weights = RegionWeights(family, processor.image_processor, model.config)
    collate = AlignCollator(
        processor, lambda _: Needs(features=features), family.image_keys, family.token_keys, region_weights=weights
    )
    made = mosaics(rows_of(10), sizes=2, side=112)
    summary = check_dataset(made, collate, progress=False)
    assert (summary.rows, summary.images) == (4, 4)
    batch = collate([made[0], made[1]])["batch"]
    assert len(batch.phrases) == 8
    assert batch.num_lost_regions == 0
    tokens = batch.image_sizes[0]
    for weight in batch.region_weights["image"]:
        # A quarter of the tokens each, none shared: the borders of parts are borders of tokens here.
        assert weight.sum().item() == pytest.approx(tokens / 4)
        assert set(weight.tolist()) == {0.0, 1.0}


def test_other_columns_and_rows_from_files(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "0.png")
    rows = datasets.Dataset.from_list([{"images": [str(tmp_path / "0.png")], "caption": "a cup"}])
    (row,) = MosaicDataset(rows, Mosaics(text="caption"))
    assert row["objects"] == [{"box": [0, 0, 1, 1], "text": "a cup"}]
    assert load_image(row["image"]).size == (672, 672)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": None}, r"row 0: no column 'chosen', which says what a part of a mosaic is called"),
        ({"chosen": " "}, r"row 0: column 'chosen' is empty"),
        ({"image": None}, r"row 0: a part of a mosaic is one image, and the row has 0"),
        ({"image": None, "images": ["a", "b"]}, r"the row has 2"),
        ({"unreadable": "no picture"}, "row 0: no picture"),
    ],
)
def test_rows_that_are_no_part(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        mosaics([rows_of(1)[0] | change])[0]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    made = mosaics([{"image": str(tmp_path / "gone.png"), "chosen": "a cup"}])
    with pytest.raises(DataError, match=r"gone\.png"):
        load_image(made[0]["image"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (5,)}, r"sizes must be whole numbers from 1 to 4, got \(5,\)"),
        ({"sizes": ()}, "sizes must be whole numbers"),
        ({"side": 0}, "side must be a whole number of pixels"),
        ({"text": ""}, "text must be the name of a column"),
        ({"redraw": 1}, "redraw must be true or false"),
        ({"size": 2}, "a mosaic has no option 'size'; it has sizes, side, text, redraw; did you mean"),
        ({"seed": 2}, "a mosaic has no option 'seed'"),
    ],
)
def test_options_that_make_no_mosaic(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        mosaics(rows_of(4), **options)


def test_datasets_that_make_no_mosaic() -> None:
    with pytest.raises(DataError, match="takes one dataset"):
        mosaics({"a": rows_of(2)})
    with pytest.raises(DataError, match="load without streaming"):
        mosaics(iter(rows_of(2)))
