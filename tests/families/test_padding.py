"""Padding of tiles."""

from __future__ import annotations

import pytest
import torch

from mllm_align.families.padding import pad_sides, pad_tiles


@pytest.mark.parametrize("shape", [(3, 4, 4), (4, 4)])
def test_zero_tiles_come_behind_the_real_ones(shape: tuple[int, ...]) -> None:
    images = [torch.rand(1, tiles, *shape) + 1 for tiles in (2, 5, 1)]
    padded = pad_tiles(images)
    assert padded.shape == (3, 5, *shape)
    for row, image in enumerate(images):
        count = image.shape[1]
        assert torch.equal(padded[row, :count], image[0])
        assert not padded[row, count:].any()


def test_masks_keep_their_type() -> None:
    masks = [torch.ones(1, tiles, 4, 4, dtype=torch.int64) for tiles in (1, 2)]
    assert pad_tiles(masks).dtype == torch.int64


def test_what_is_not_one_image_per_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="one image per tensor"):
        pad_tiles([torch.zeros(2, 3, 3, 4, 4)])
    with pytest.raises(ValueError, match="tiles of one size"):
        pad_tiles([torch.zeros(1, 3, 3, 4, 4), torch.zeros(1, 3, 3, 8, 8)])


def test_zeros_come_below_and_on_the_right() -> None:
    images = [torch.rand(1, 3, height, width) + 1 for height, width in ((2, 5), (4, 1))]
    padded = pad_sides(images)
    assert padded.shape == (2, 3, 4, 5)
    for row, image in enumerate(images):
        height, width = image.shape[2:]
        assert torch.equal(padded[row, :, :height, :width], image[0])
        assert padded[row].count_nonzero() == image.numel()
