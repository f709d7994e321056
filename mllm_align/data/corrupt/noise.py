"""Noise: the forward diffusion of VCD (Leng et al., 2023), arXiv 2311.16922, and plain Gaussian noise."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

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
    336, about 0.36 from 1024 x 768; a larger step makes up for part of it.

    Args:
        step: Of the diffusion, 0 to 999; at 999 a is still 0.08.
        space: "pixel", where x is in [0, 1]; "clip", where x is the normalised image.
    """

    step: int = 500
    space: Literal["pixel", "clip"] = "pixel"

    def __post_init__(self) -> None:
        """Refuses steps and spaces that there are not."""
        whole("step", self.step, 0, STEPS - 1)
        if self.space not in SPACES:
            raise ValueError(f"space must be one of {', '.join(SPACES)}, not {self.space!r}")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The noisy image."""
        left = alpha_bars()[self.step]
        signal, noise = np.float32(np.sqrt(left)), np.float32(np.sqrt(1 - left))
        pixels = signal * _pixels(image)
        if self.space == "clip":
            # z = (x - m) / s, and s (signal z + noise e) + m is a pixel again.
            return _image(pixels + (1 - signal) * CLIP_MEAN + noise * CLIP_STD * _normal(image, rng))
        return _image(pixels + noise * _normal(image, rng))


@dataclass(frozen=True)
class GaussianNoise(Corruption):
    """Adds N(0, std^2) to every channel of every pixel in [0, 1], clamped; shrinking the image leaves less of it.

    Args:
        std: Standard deviation, as a share of the range from black to white.
    """

    std: float = 0.5

    def __post_init__(self) -> None:
        """Refuses what is no standard deviation."""
        object.__setattr__(self, "std", number("std", self.std, 0, above=True))

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The noisy image."""
        return _image(_pixels(image) + np.float32(self.std) * _normal(image, rng))


def _pixels(image: Image.Image) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1]."""
    return np.asarray(image, dtype=np.float32) / 255


def _normal(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((image.height, image.width, 3), dtype=np.float32)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(pixels.clip(0, 1) * 255).astype(np.uint8))
