"""A made image is read like any other, and its key says what is in it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from mllm_align.data.corrupt import Blank, Crop, DrawnImage, GaussianNoise, Mirror
from mllm_align.data.corrupt.drawn import seed_of
from mllm_align.data.errors import DataError
from mllm_align.data.images import image_key, load_image
from runs import picture


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "Überblick 図"
    folder.mkdir()
    path = folder / "naïve.png"
    picture(0).save(path)
    return path


def test_every_reader_gets_the_same_pixels(path: Path) -> None:
    drawn = DrawnImage(str(path), Crop(), 7)
    again = pickle.loads(pickle.dumps(drawn))
    assert load_image(drawn).tobytes() == load_image(drawn).tobytes() == load_image(again).tobytes()
    assert image_key(drawn) == image_key(again)
    data = DrawnImage({"bytes": path.read_bytes(), "path": None}, Crop(), 7)
    assert load_image(data).tobytes() == load_image(drawn).tobytes() != picture(0).tobytes()
    assert image_key(data) == image_key(DrawnImage(path.read_bytes(), Crop(), 7))


def test_the_key_tells_original_corruption_and_draw(path: Path) -> None:
    keys = {
        image_key(drawn)
        for drawn in (
            DrawnImage(path, Crop(), 7),
            DrawnImage(path, Crop(), 8),
            DrawnImage(path, Crop(scale=(0.1, 0.2)), 7),
            DrawnImage(path, GaussianNoise(), 7),
            DrawnImage(picture(1), Crop(), 7),
            DrawnImage(path, Mirror(), 7),
            path,
        )
    }
    assert len(keys) == 7


def test_the_key_follows_the_content_of_the_file(path: Path) -> None:
    before = image_key(DrawnImage(path, Crop(), 7))
    picture(1).save(path)
    os.utime(path, ns=(1, 1))
    assert image_key(DrawnImage(path, Crop(), 7)) != before


def test_what_does_not_draw_is_one_image_whatever_the_seed() -> None:
    for corruption in (Blank(), Mirror()):
        assert image_key(DrawnImage(picture(0), corruption, 1)) == image_key(DrawnImage(picture(0), corruption, 2))


def test_a_broken_original_names_the_row(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])
    where = "row 3, column 'contrast_image'"
    with pytest.raises(DataError, match=r"row 3, column 'contrast_image': .*naïve\.png is truncated or damaged"):
        load_image(DrawnImage(path, Crop(), 7), where)
    for read in (load_image, image_key):
        with pytest.raises(DataError, match="row 3, column 'contrast_image': there is no image file"):
            read(DrawnImage("gone.png", Crop(), 7), where)


@pytest.mark.parametrize("other", [(1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1), (0, 1, 0, 0)])
def test_every_fact_changes_the_seed(other: tuple[Any, ...]) -> None:
    assert seed_of(0, "a", 0, 0) == seed_of(0, "a", 0, 0) != seed_of(*other)
    assert seed_of(0, "1", 0, 0) != seed_of(0, 1, 0, 0)
