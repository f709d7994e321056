"""A small part of the image, enlarged to the size of the whole: mDPO (Wang et al., 2024), arXiv 2406.11839."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mllm_align.data.corrupt.base import Corruption, span

ATTEMPTS = 10


@dataclass(frozen=True)
class Crop(Corruption):
    """Keeps a random part of the area and resizes it back; the algorithm of torchvision's `RandomResizedCrop`.

    mDPO's own code crops the processed tensor, and draws other crops for policy and reference; here the original is
    cropped, and both see the same.

    Args:
        scale: Smallest and largest share of the area that is kept; the smallest is below 1.
        ratio: Smallest and largest width over height of what is kept.
    """

    scale: tuple[float, float] = (0.01, 0.2)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        """Refuses shares and ratios that make no sense."""
        object.__setattr__(self, "scale", span("scale", self.scale, 0, 1, above=True))
        if self.scale[0] == 1:
            raise ValueError(f"scale must begin below 1, or nothing is cut off, not {self.scale!r}")
        object.__setattr__(self, "ratio", span("ratio", self.ratio, 0, above=True))

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The part, in the size of the whole."""
        return image.crop(self.box(image.size, rng)).resize(image.size, Image.Resampling.BILINEAR)

    def box(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the part.

        Where no draw fits (an image of very few pixels, or a strip), it is the largest part in the middle whose ratio
        is allowed: of one pixel, the pixel.
        """
        width, height = size
        narrow, wide = map(math.log, self.ratio)
        for _ in range(ATTEMPTS):
            area = width * height * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(narrow, wide))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
                return left, top, left + w, top + h
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h
