"""A contrast image that is still to be made: which image, what is done to it, and the seed of the draw."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mllm_align.data.corrupt.base import Corruption
from mllm_align.data.images import MadeImage, image_key, load_image

# Part of every key: another number once a corruption makes something else of the same image, options and seed.
VERSION = 2


@dataclass(frozen=True)
class DrawnImage(MadeImage):
    """What a corruption makes of an image with a seed.

    Its key is of the original, the corruption with its options, and the seed (where it draws), so that caches keyed by
    images hold what it says, and rows that make the same share it.

    Args:
        original: Whatever `load_image` reads.
        corruption: What is done to it.
        seed: Of all draws.
    """

    original: Any
    corruption: Corruption
    seed: int

    def load(self, where: str) -> Image.Image:
        """Reads the original and corrupts it.

        Raises:
            DataError: If the original cannot be read.
        """
        return self.corruption(load_image(self.original, where), np.random.default_rng(self.seed))

    def key(self, where: str) -> str:
        """Equal for equal originals, corruptions and draws.

        Raises:
            DataError: If the original must be read for it and cannot be.
        """
        kind = type(self.corruption)
        seed = self.seed if self.corruption.random else None
        facts = (VERSION, kind.__module__, repr(self.corruption), seed, image_key(self.original, where))
        return f"made:{hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()}"

    @property
    def sized_as(self) -> Any:
        """The original, where its size is kept."""
        return self.original if self.corruption.keeps_size else self


def seed_of(*facts: Any) -> int:
    """A seed of 128 bits that any change of the facts changes."""
    return int.from_bytes(hashlib.blake2b(repr(facts).encode(), digest_size=16).digest(), "little")
