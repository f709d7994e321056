"""Noise: the forward diffusion of VCD (Leng et al., 2023), arXiv 2311.16922, and plain Gaussian noise."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from mllm_align.data.corrupt.base import Corruption, number, whole

STEPS = 1000
SPACES = ("pixel", "clip")
# What CLIP's processors, and those of most LVLMs, subtract from pixels in [0, 1] and divide them by.
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


@functools.cache
def alpha_bars() -> np.ndarray:
    """(1000,) float64: the share of the signal's variance that is left after each step."""
    betas = (0.5e-2 - 1e-5) / (1 + np.exp(-np.linspace(-6, 6, STEPS))) + 1e-5
    return np.cumprod(1 - betas)


@dataclass(frozen=True)
class DiffusionNoise(Corruption):
    """`sqrt(a) x + sqrt(1 - a) e` with e ~ N(0, 1), where a falls with the step; rounded and clamped to pixels.

    VCD and CHiP add it to the tensor that CLIP's processor makes, POVID and TPO to pixels in [0, 1], which is noise
    about 3.7 times as strong beside the same signal. Both can be had; neither paper clamps (POVID's pixels wrap).
    VCD and CHiP add it after the image was resized, here it is the original that gets it: a processor that shrinks the
    image averages some of it away. Of the standard deviation about 0.57 are left from 640 x 480 to a shorter side of
    336, about 0.36 from 1024 x 768. With `size` all of it is left, at that size: the grain of the noise is as coarse
    as a pixel of the shrunk image, which itself loses nothing.

    Args:
        step: Of the diffusion, 0 to 999; at 999 a is still 0.08.
        space: "pixel", where x is in [0, 1]; "clip", where x is the normalised image.
        size: Shorter side in pixels to which the processor shrinks images; None for noise of single pixels.
    """

    step: int = 500
    space: Literal["pixel", "clip"] = "pixel"
    size: int | None = None

    def __post_init__(self) -> None:
        """Refuses steps, spaces and sizes that there are not."""
        whole("step", self.step, 0, STEPS - 1)
        if self.space not in SPACES:
            raise ValueError(f"space must be one of {', '.join(SPACES)}, not {self.space!r}")
        _refuse_size(self.size)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The noisy image."""
        left = alpha_bars()[self.step]
        signal, noise = np.float32(np.sqrt(left)), np.float32(np.sqrt(1 - left))
        pixels = signal * _pixels(image)
        if self.space == "clip":
            # z = (x - m) / s, and s (signal z + noise e) + m is a pixel again.
            return _image(pixels + (1 - signal) * CLIP_MEAN + noise * CLIP_STD * _normal(image, rng, self.size))
        return _image(pixels + noise * _normal(image, rng, self.size))


@dataclass(frozen=True)
class GaussianNoise(Corruption):
    """Adds N(0, std^2) to every channel of every pixel in [0, 1], clamped; shrinking the image leaves less of it.

    Args:
        std: Standard deviation, as a share of the range from black to white.
        size: As for `DiffusionNoise`: shrunk to this shorter side, the image has noise of that deviation.
    """

    std: float = 0.5
    size: int | None = None

    def __post_init__(self) -> None:
        """Refuses what is no standard deviation, and sizes that there are not."""
        object.__setattr__(self, "std", number("std", self.std, 0, above=True))
        _refuse_size(self.size)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The noisy image."""
        return _image(_pixels(image) + np.float32(self.std) * _normal(image, rng, self.size))


def _pixels(image: Image.Image) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1]."""
    return np.asarray(image, dtype=np.float32) / 255


def _refuse_size(size: Any) -> None:
    if size is not None:
        whole("size", size, 1)


def _normal(image: Image.Image, rng: np.random.Generator, size: int | None) -> np.ndarray:
    """(H, W, 3) of N(0, 1): of every pixel, or drawn for the image as it is with a shorter side of `size`."""
    shorter = min(image.size)
    if size is None or size >= shorter:  # enlarging averages nothing away
        return rng.standard_normal((image.height, image.width, 3), dtype=np.float32)
    shrunk = tuple(side * size // shorter for side in image.size)  # rounded down, as processors do
    drawn = rng.standard_normal((shrunk[1], shrunk[0], 3), dtype=np.float32)
    large = _resized(drawn, image.size, Image.Resampling.NEAREST)
    # Enlarged and shrunk again it would be weaker than it was drawn, for blocks and pixels do not lie on one another.
    again = _resized(large, shrunk, Image.Resampling.BICUBIC)
    return large * np.sqrt(np.square(drawn).mean() / np.square(again).mean())


def _resized(field: np.ndarray, size: tuple[int, ...], how: Image.Resampling) -> np.ndarray:
    """(H, W, 3) float32 in another size (width, height)."""
    width, height = size
    channels = [Image.fromarray(field[..., channel]).resize((width, height), how) for channel in range(3)]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(pixels.clip(0, 1) * 255).astype(np.uint8))
