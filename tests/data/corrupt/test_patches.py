"""A shuffle loses no pixel; a mask covers the share that it says, with the mean."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mllm_align.data.corrupt import MaskPatches, PatchShuffle


def random_image(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 40), height=st.integers(1, 40), grid=st.integers(2, 50), seed=st.integers(0, 2**32))
def test_a_shuffle_keeps_every_pixel(width: int, height: int, grid: int, seed: int) -> None:
    image = random_image(width, height, seed)
    made = PatchShuffle(grid)(image, np.random.default_rng(seed))
    assert made.size == image.size
    before, after = (Counter(map(tuple, np.asarray(each).reshape(-1, 3).tolist())) for each in (image, made))
    assert before == after


def test_whole_patches_move() -> None:
    """Nine patches of a colour each, four by five pixels; two columns and a row are left over."""
    pixels = np.full((16, 14, 3), 200, dtype=np.uint8)
    for row in range(3):
        for column in range(3):
            pixels[5 * row : 5 * row + 5, 4 * column : 4 * column + 4] = 10 * (3 * row + column)
    made = np.asarray(PatchShuffle(3)(Image.fromarray(pixels), np.random.default_rng(1)))
    assert (made[15] == 200).all()
    assert (made[:, 12:] == 200).all()
    patches = made[:15, :12, 0].reshape(3, 5, 3, 4).swapaxes(1, 2).reshape(9, 20)
    assert (patches == patches[:, :1]).all()
    assert sorted(patches[:, 0].tolist()) == list(range(0, 90, 10))
    assert patches[:, 0].tolist() != list(range(0, 90, 10))


def test_no_draw_leaves_the_patches_in_place() -> None:
    """Of the orders of four patches every other one comes up; of a single patch there is only one."""
    image = Image.fromarray(np.arange(4, dtype=np.uint8).repeat(3).reshape(2, 2, 3))
    made = {PatchShuffle(2)(image, np.random.default_rng(seed)).tobytes() for seed in range(400)}
    assert len(made) == 23
    assert image.tobytes() not in made
    pixel = Image.new("RGB", (1, 1), "red")
    assert PatchShuffle()(pixel, np.random.default_rng(0)).tobytes() == pixel.tobytes()


@pytest.mark.parametrize(("size", "blocks"), [(14, 24 * 24), (1, 336 * 336), (100, 16)])
def test_the_share_of_blocks_that_is_covered(size: int, blocks: int) -> None:
    image = random_image(336, 336, 0)
    mean = np.rint(np.asarray(image).mean(axis=(0, 1)))
    made = np.asarray(MaskPatches(0.3, size)(image, np.random.default_rng(0)))
    covered = (made == mean).all(axis=-1)
    assert (made[~covered] == np.asarray(image)[~covered]).all()
    corners = covered[::size, ::size]
    assert corners.size == blocks
    assert abs(corners.sum() - round(0.3 * blocks)) <= max(1, 1e-3 * blocks)
    whole_blocks = corners.repeat(size, axis=0).repeat(size, axis=1)[:336, :336]
    assert (covered | ~whole_blocks).all()


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 40), height=st.integers(1, 40), size=st.sampled_from([1, 3, 14, 10**9]))
def test_every_image_has_a_block_that_is_covered(width: int, height: int, size: int) -> None:
    image = random_image(width, height, 0)
    made = np.asarray(MaskPatches(size=size)(image, np.random.default_rng(0)))
    assert (made == np.rint(np.asarray(image).mean(axis=(0, 1)))).all(axis=-1).any()


def test_nonsense_is_refused() -> None:
    for grid in (1, 0, 2.0):
        with pytest.raises(ValueError, match="grid must be a whole number of at least 2"):
            PatchShuffle(grid)  # type: ignore[arg-type]
    for share in (0, 1.5):
        with pytest.raises(ValueError, match="share must be a number above 0 and at most 1"):
            MaskPatches(share)
    with pytest.raises(ValueError, match="size must be a whole number of at least 1"):
        MaskPatches(size=0)
