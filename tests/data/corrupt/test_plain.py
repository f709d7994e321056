from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mllm_align.data.corrupt import Blank, MeanImage
from mllm_align.data.corrupt.noise import CLIP_MEAN

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("colour", "pixel"),
    [("black", (0, 0, 0)), ("white", (255, 255, 255)), ("clip", (123, 117, 104)), ([1, 2, 3], (1, 2, 3))],
)
def test_one_colour_all_over(colour: str, pixel: tuple[int, int, int]) -> None:
    made = Blank(colour)(Image.new("RGB", (7, 5), "red"), RNG)
    assert made.size == (7, 5)
    assert made.getcolors() == [(35, pixel)]


def test_clip_is_what_its_processor_makes_zero() -> None:
    pixel = np.array(Blank("clip")(Image.new("RGB", (1, 1)), RNG))[0, 0]
    assert np.abs(pixel / 255 - CLIP_MEAN).max() < 1 / 510


def test_the_mean_is_of_each_channel() -> None:
    image = Image.fromarray(np.array([[[0, 10, 255], [255, 20, 255]]], dtype=np.uint8))
    assert MeanImage()(image, RNG).getcolors() == [(2, (128, 15, 255))]


@pytest.mark.parametrize("colour", ["green", (1, 2), (1, 2, 256), (1.0, 2, 3), None, 5])
def test_no_colour(colour: object) -> None:
    with pytest.raises(ValueError, match="colour must be"):
        Blank(colour)  # type: ignore[arg-type]
