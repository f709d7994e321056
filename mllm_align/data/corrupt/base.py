"""What a corruption is, and the refusal of values that make no sense."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Corruption(ABC):
    """Makes a contrast image of a row's own image; a frozen dataclass whose fields are its options.

    Attributes:
        random: Whether it draws; one that does not makes the same of an image in every epoch.
        keeps_size: Whether what it makes has the size of the image.
    """

    random: ClassVar[bool] = True
    keeps_size: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The contrast image of an upright RGB image, RGB again; every draw is taken from `rng`."""


def number(name: str, value: Any, low: float, high: float = math.inf, *, above: bool = False) -> float:
    """The option as a float.

    Args:
        name: Of the option.
        value: As given.
        low: Its smallest value.
        high: Its largest value.
        above: Whether `low` itself is too small.

    Raises:
        ValueError: If it is no number or out of range.
    """
    real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not real or not low <= value <= high or (above and value == low):
        raise ValueError(f"{name} must be a number {_span(low, high, above)}, not {value!r}")
    return float(value)


def whole(name: str, value: Any, low: int, high: float = math.inf) -> int:
    """The option as a whole number.

    Raises:
        ValueError: If it is none or out of range.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number {_span(low, high, False)}, not {value!r}")
    return value


def span(name: str, value: Any, low: float, high: float = math.inf, *, above: bool = False) -> tuple[float, float]:
    """The option as the two ends of a range.

    Raises:
        ValueError: If it is not two numbers in order, or one is out of range.
    """
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"{name} must be two numbers, the lower one first, not {value!r}")
    first, last = (number(name, end, low, high, above=above) for end in value)
    if first > last:
        raise ValueError(f"{name} must begin with its lower end, not {value!r}")
    return first, last


def _span(low: float, high: float, above: bool) -> str:
    first = f"above {low:g}" if above else f"of at least {low:g}"
    return first if high == math.inf else f"{first} and at most {high:g}"
