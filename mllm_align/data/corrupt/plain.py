"""One colour all over: nothing to see, where the prompt still has an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from mllm_align.data.corrupt.base import Corruption, whole

# "clip" is what is zero once CLIP's processor has normalised it: CHiP's "black" and V-DPO's blank image.
COLOURS = {"black": (0, 0, 0), "white": (255, 255, 255), "clip": (123, 117, 104)}


@dataclass(frozen=True)
class Blank(Corruption):
    """An image of one colour, the same for every row.

    Args:
        colour: "black", "white", "clip" (the mean that CLIP's processor subtracts), or red, green and blue up to 255.
    """

    random: ClassVar[bool] = False

    colour: str | tuple[int, int, int] = "black"

    def __post_init__(self) -> None:
        """Refuses what is no colour."""
        if isinstance(self.colour, str) and self.colour in COLOURS:
            return
        if not isinstance(self.colour, list | tuple) or len(self.colour) != 3:
            raise ValueError(f"colour must be {', '.join(COLOURS)} or three whole numbers, not {self.colour!r}")
        object.__setattr__(self, "colour", tuple(whole("colour", value, 0, 255) for value in self.colour))

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The colour, in the size of the image."""
        return Image.new("RGB", image.size, COLOURS[self.colour] if isinstance(self.colour, str) else self.colour)


@dataclass(frozen=True)
class MeanImage(Corruption):
    """The mean colour of the image itself, all over it."""

    random: ClassVar[bool] = False

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The mean colour, in the size of the image."""
        return Image.new("RGB", image.size, mean_colour(image))


def mean_colour(image: Image.Image) -> tuple[int, int, int]:
    """Mean red, green and blue of an image, rounded."""
    red, green, blue = np.rint(np.asarray(image).mean(axis=(0, 1))).astype(int).tolist()
    return red, green, blue
