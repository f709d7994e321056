"""Patches of the image out of order, or covered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from mllm_align.data.corrupt.base import Corruption, number, whole
from mllm_align.data.corrupt.plain import mean_colour


@dataclass(frozen=True)
class PatchShuffle(Corruption):
    """Cuts the image into a grid of equal patches and puts them back in random order, never in the one they had.

    Every pixel is there once, also where the grid does not go into the size: what is left at the right and the bottom
    stays where it is. An image of fewer pixels than patches has patches of one pixel.

    Args:
        grid: Patches along each side.
    """

    grid: int = 4

    def __post_init__(self) -> None:
        """Refuses a grid without order."""
        whole("grid", self.grid, 2)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The image out of order."""
        pixels = np.array(image)
        rows, columns = min(self.grid, image.height), min(self.grid, image.width)
        h, w = image.height // rows, image.width // columns
        cut = pixels[: rows * h, : columns * w].reshape(rows, h, columns, w, 3).swapaxes(1, 2)
        shuffled = cut.reshape(rows * columns, h, w, 3)[_order(rows * columns, rng)].reshape(rows, columns, h, w, 3)
        pixels[: rows * h, : columns * w] = shuffled.swapaxes(1, 2).reshape(rows * h, columns * w, 3)
        return Image.fromarray(pixels)


def _order(count: int, rng: np.random.Generator) -> np.ndarray:
    """Another order than the first, where there is one: of four patches one draw in 24 would leave all in place."""
    order = rng.permutation(count)
    while count > 1 and (order == np.arange(count)).all():
        order = rng.permutation(count)
    return order


@dataclass(frozen=True)
class MaskPatches(Corruption):
    """Covers random blocks with the mean colour of the image: OPA-DPO (Yang et al., 2025), arXiv 2501.09695.

    OPA-DPO covers the tensor that the processor makes, with the mean over all its channels; here it is the original,
    and the mean of each channel, so that a block has as many pixels as it has before the image is resized.

    Args:
        share: Of the blocks that are covered; at least one is.
        size: Pixels along each side of a block: 14 for a patch of CLIP's at its own resolution, 1 for single pixels.
    """

    share: float = 0.3
    size: int = 14

    def __post_init__(self) -> None:
        """Refuses shares and sizes that make no sense."""
        object.__setattr__(self, "share", number("share", self.share, 0, 1, above=True))
        whole("size", self.size, 1)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The image with its blocks covered."""
        size = min(self.size, max(image.size))
        rows, columns = -(-image.height // size), -(-image.width // size)
        covered = np.zeros(rows * columns, dtype=bool)
        covered[rng.permutation(rows * columns)[: max(1, round(self.share * rows * columns))]] = True
        mask = covered.reshape(rows, columns).repeat(size, axis=0).repeat(size, axis=1)
        pixels = np.array(image)
        pixels[mask[: image.height, : image.width]] = mean_colour(image)
        return Image.fromarray(pixels)
