"""Regions for the eye: where colour lies is where the weights are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from mllm_align.families.grids import grid, tiles
from mllm_align.vision.drawing import GAP, HEAD, draw_regions, layers, stack
from mllm_align.vision.geometry import box_weights


class Region(NamedTuple):
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = None


def panel(image: Image.Image, place: int, width: int, height: int) -> np.ndarray:
    """The pixels of one of the panels, which are all of this size."""
    left = GAP + place * (width + GAP)
    return np.asarray(image, dtype=int)[HEAD : HEAD + height, left : left + width]


def drawn(regions: list[Region], grids: list, image: Image.Image) -> Image.Image:
    stop = max(each.stop for each in grids)
    weights = box_weights(torch.tensor([each.box for each in regions]), grids, stop)
    return draw_regions(image, regions, ["x"] * len(regions), grids, weights)


def test_a_cell_is_coloured_as_far_as_it_is_covered() -> None:
    """A 4 x 4 grid; the box covers one cell whole and the one to its right by a half."""
    white = Image.new("RGB", (400, 400), "white")
    found = panel(drawn([Region((0.25, 0.25, 0.625, 0.5))], [grid(4, 4)], white), 1, 384, 384)
    middles = found[48::96, 48::96]
    # The colour of the only region is red; green falls from 255 the further, the more of a cell is covered.
    fall = 255 - middles[:, :, 1]
    assert fall[1, 1] > 150
    assert abs(fall[1, 1] - 2 * fall[1, 2]) <= 4
    assert fall.sum() == fall[1, 1] + fall[1, 2]


def test_what_no_token_is_shown_is_pale_and_padding_is_added() -> None:
    dark = Image.new("RGB", (384, 384), (10, 10, 10))
    cropped = panel(drawn([Region((0, 0, 0, 0))], [grid(2, 2, (0.25, 0.0, 0.75, 1.0))], dark), 1, 384, 384)
    assert cropped[100, 10].min() > 100
    assert cropped[100, 150].max() < 30
    padded = drawn([Region((0, 0, 0, 0))], [grid(2, 2, (0.0, -0.5, 1.0, 1.5))], dark)
    assert padded.size == (3 * GAP + 2 * 384, HEAD + GAP + 2 * 384)


def test_tiles_share_a_panel_and_a_thumbnail_has_its_own() -> None:
    cut = list(tiles(1, 2, (2, 2)))
    whole = grid(2, 2, start=8)
    assert layers([*cut, whole]) == [cut, [whole]]
    picture = drawn([Region((0, 0, 1, 1))], [*cut, whole], Image.new("RGB", (384, 384), "white"))
    assert picture.width == GAP + 3 * (384 + GAP)


def test_masks_are_drawn_and_pictures_stacked() -> None:
    mask = np.zeros((2, 2), dtype=np.float32)
    mask[0, 1] = 1
    region = Region((0.5, 0.0, 1.0, 0.5), mask)
    picture = draw_regions(Image.new("RGB", (384, 384), "white"), [region], ["it"], [grid(2, 2)], torch.zeros(1, 4))
    shown = panel(picture, 0, 384, 384)
    assert (shown[300, 300] == 255).all()
    assert shown[100, 300, 1] < 200
    assert stack([("one", picture), ("two", picture)]).height == 2 * (picture.height + HEAD)
