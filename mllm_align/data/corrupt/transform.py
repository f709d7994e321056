"""The whole image changed: blurred, turned, or in the mirror."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from mllm_align.data.corrupt.base import Corruption, number, span


@dataclass(frozen=True)
class Blur(Corruption):
    """Gaussian blur.

    Args:
        radius: Standard deviation in pixels of the original.
    """

    random: ClassVar[bool] = False

    radius: float = 8.0

    def __post_init__(self) -> None:
        """Refuses what is no radius."""
        object.__setattr__(self, "radius", number("radius", self.radius, 0, above=True))

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The blurred image."""
        return image.filter(ImageFilter.GaussianBlur(self.radius))


@dataclass(frozen=True)
class Rotate(Corruption):
    """Turns the image against the clock by a random angle, black where nothing is left: CHiP, arXiv 2501.16629.

    Args:
        degrees: Smallest and largest angle; one and the same must turn the image.
    """

    degrees: tuple[float, float] = (10.0, 80.0)

    def __post_init__(self) -> None:
        """Refuses what are no angles."""
        first, last = span("degrees", self.degrees, -360, 360)
        if first == last and first % 360 == 0:
            raise ValueError(f"degrees must turn the image, not {self.degrees!r}")
        object.__setattr__(self, "degrees", (first, last))

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The turned image, in the size that it had."""
        return image.rotate(rng.uniform(*self.degrees), Image.Resampling.NEAREST)


@dataclass(frozen=True)
class Mirror(Corruption):
    """Left becomes right: wrong for what is said about sides and for writing, and for little else."""

    random: ClassVar[bool] = False

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The image in the mirror."""
        return ImageOps.mirror(image)
