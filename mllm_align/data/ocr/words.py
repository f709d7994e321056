"""Words and where they stand, as OCR engines and files tell them: in pixels or in shares, as boxes or as corners."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mllm_align.data.errors import DataError, quoted

# How far beyond its page a box may reach, as a share of it: engines round outwards.
SLACK = 0.02
# Asked of a page that comes without a question.
PROMPT = "What does the page say?"


class Word(NamedTuple):
    """A piece of text, and left, top, right and bottom of it as shares of the page's width and height."""

    text: str
    box: tuple[float, float, float, float]


def read_words(value: Any, size: tuple[int, int] | None, where: str) -> list[Word]:
    """Words of a page; those without text, or without area, are left out.

    Args:
        value: A list of `{"text", "box"}`: left, top, right and bottom, or corners [[x, y], ...]. Boxes are in shares
            of the page where none of them reaches beyond 1, else in pixels.
        size: Width and height of the page in pixels; None where nobody knows.
        where: How errors speak of the page.

    Raises:
        DataError: If something is none of this, boxes are in pixels of a page of unknown size, or lie beyond it.
    """
    if not isinstance(value, list | tuple | np.ndarray):
        raise DataError(f"{where}: must be a list of words with text and box, got {type(value).__name__}")
    texts, boxes = [], []
    for number, entry in enumerate(value):
        if not isinstance(entry, Mapping) or entry.get("box") is None or not isinstance(entry.get("text"), str):
            raise DataError(f"{where}, word {number}: must be a mapping with text and box, got {quoted(entry)}")
        texts.append(" ".join(entry["text"].split()))
        boxes.append(_sides(entry["box"], f"{where}, word {number}"))
    largest = max((side for box in boxes for side in box), default=0.0)
    scale = (1.0, 1.0) if largest <= 1 + SLACK else _pixels(size, largest, where)
    found = []
    for number, (text, box) in enumerate(zip(texts, boxes, strict=True)):
        shares = [side / scale[axis % 2] for axis, side in enumerate(box)]
        if min(shares) < -SLACK or max(shares) > 1 + SLACK:
            raise DataError(
                f"{where}, word {number}: box {quoted(box)} lies beyond the page of {scale[0]:g} x {scale[1]:g}; are "
                "boxes and size of one resolution?"
            )
        left, top, right, bottom = (min(max(side, 0.0), 1.0) for side in shares)
        if text and right > left and bottom > top:
            found.append(Word(text, (left, top, right, bottom)))
    return found


def _pixels(size: tuple[int, int] | None, largest: float, where: str) -> tuple[float, float]:
    if size is None:
        raise DataError(
            f"{where}: boxes are in pixels (up to {largest:g}), of a page of unknown size: give the row width and "
            "height, or boxes as shares of them"
        )
    return float(size[0]), float(size[1])


def _sides(value: Any, where: str) -> tuple[float, float, float, float]:
    """Left, top, right and bottom."""
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if numbers.ndim == 2 and numbers.size == 2 * len(numbers) >= 4:
        numbers = np.concatenate([numbers.min(axis=0), numbers.max(axis=0)])
    if numbers.shape != (4,) or not all(map(math.isfinite, numbers)):
        raise DataError(
            f"{where}: box must be four numbers (left, top, right, bottom) or corners [[x, y], ...], got "
            f"{quoted(value)}"
        )
    left, top, right, bottom = numbers.tolist()
    if right < left or bottom < top:
        raise DataError(
            f"{where}: box {quoted(value)} ends before it begins; sides are left, top, right and bottom, not width "
            "and height"
        )
    return left, top, right, bottom


def joined(words: Sequence[Word]) -> Word:
    """Several words as one, in the order given."""
    sides = list(zip(*(word.box for word in words), strict=True))
    box = (min(sides[0]), min(sides[1]), max(sides[2]), max(sides[3]))
    return Word(" ".join(word.text for word in words), box)
