"""Pictures of one object: read from their pixels, every combination as often, and of test splits alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from mllm_align.data.world import SMALL, World, class_rows
from mllm_align.data.world.classes import TEST_SPLITS
from mllm_align.data.world.scenes import Item, Scene
from mllm_align.data.world.splits import split_of
from world_pixels import only_object


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return class_rows()


def test_each_picture_shows_what_its_row_says(rows: list[dict[str, Any]]) -> None:
    assert list(rows[0]) == ["id", "image", "prompt", "shape", "colour"]
    assert len({row["id"] for row in rows}) == len(rows) == 180
    assert [(row["shape"], row["colour"]) for row in rows] == [only_object(row["image"])[:2] for row in rows]


def test_classes_are_balanced(rows: list[dict[str, Any]]) -> None:
    both = {(shape, colour): 5 for shape in SMALL.shapes for colour in SMALL.colours}
    assert Counter((row["shape"], row["colour"]) for row in rows) == both
    # The first ones are balanced as well: a part of them is like the whole.
    assert Counter((row["shape"], row["colour"]) for row in rows[:36]) == dict.fromkeys(both, 1)


def test_pictures_are_of_test_splits_and_all_different(rows: list[dict[str, Any]]) -> None:
    contents = []
    for row in rows:
        shape, colour, size, cell = only_object(row["image"])
        contents.append(Scene((Item(*cell, shape, colour, size),)))
    assert {split_of(scene) for scene in contents} == set(TEST_SPLITS)
    assert len({scene.content_hash for scene in contents}) == len(rows)
    # Places and sizes are not part of any class.
    shares = Counter(scene.items[0].size for scene in contents)
    assert 60 < shares["small"] < 120
    assert {(item.row, item.column) for scene in contents for item in scene.items} == {
        (row, column) for row in range(4) for column in range(4)
    }


def test_seeds_and_worlds() -> None:
    rows = class_rows(2, seed=3)
    assert [row["image"].tobytes() for row in rows] == [row["image"].tobytes() for row in class_rows(2, seed=3)]
    assert {row["image"].tobytes() for row in rows} != {row["image"].tobytes() for row in class_rows(2, seed=4)}
    larger = class_rows(1, world=World(num_shapes=8, num_colours=8, num_sizes=3))
    assert len({(row["shape"], row["colour"]) for row in larger}) == 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_each": 0}, "num_each must be at least 1, not 0"),
        ({"splits": ("pair",)}, "unknown split 'pair'"),
        ({"splits": ("private",)}, "the private test needs a salt"),
        ({"num_each": 9}, r"pairs have \d pictures of one \w+ \w+, not 9: ask for fewer, or for more splits"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_rows(**settings)
