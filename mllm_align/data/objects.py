"""Objects on the images of a row: where each is, and what is known of it.

A row's column `objects` is a list, one entry per object:

| key | holds |
|---|---|
| `box` | left, top, right, bottom, as shares of the upright image's width and height |
| `mask` | instead of a box, its pixels on the upright image: (height, width) of 0 and 1, or COCO's run lengths |
| `text` | what it is called, or the words that are there |
| `object_id` | which thing it is: the same one elsewhere has the same id |
| `class` | what kind of thing it is |
| `negatives` | texts that are false of it, though near the true one ("a blue cup" of a red one) |
| `positives` | texts that say the same of it in other words ("a cup in red") |
| `image` | which of the row's images it is on, counted from 0 (default 0) |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mllm_align.data.errors import DataError, quoted

KEYS = ("box", "mask", "text", "object_id", "class", "negatives", "positives", "image")
Mask = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class ImageObject:
    """One object.

    Attributes:
        image: Which of the row's images it is on.
        box: Left, top, right and bottom as shares of width and height; of a mask, what it fits into.
        mask: (height, width) float32 shares from 0 to 1 of any size over the whole image, or None.
        text: What it is called, or "".
        object_id: Which thing it is, or "".
        kind: Its class, or "".
        negatives: Texts that are false of it.
        positives: Texts that say the same of it.
    """

    image: int
    box: tuple[float, float, float, float]
    mask: Mask | None = None
    text: str = ""
    object_id: str = ""
    kind: str = ""
    negatives: tuple[str, ...] = ()
    positives: tuple[str, ...] = ()


def read_objects(value: Any, num_images: int, where: str) -> tuple[ImageObject, ...]:
    """The objects in a row's column.

    A box that has no area, or lies beyond its image, is read as it is: it covers nothing, and who looks counts it.

    Args:
        value: The column's value; None for no objects.
        num_images: How many images the row has.
        where: How errors speak of the column.

    Raises:
        DataError: Naming the object, what is wrong with it, and the mend.
    """
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: must be a list of objects, got {type(value).__name__}")
    return tuple(_object(entry, num_images, f"{where}, object {index}") for index, entry in enumerate(value))


def _object(entry: Any, num_images: int, where: str) -> ImageObject:
    if not isinstance(entry, Mapping):
        raise DataError(f"{where}: must be a mapping with a box or a mask, got {quoted(entry)}")
    given = {key: value for key, value in entry.items() if value is not None}
    unknown = sorted(set(given) - set(KEYS))
    if unknown:
        raise DataError(f"{where}: unknown key {unknown[0]!r}; an object has {', '.join(KEYS)}")
    if ("box" in given) == ("mask" in given):
        raise DataError(f"{where}: give either a box or a mask")
    image = given.get("image", 0)
    if isinstance(image, bool) or not isinstance(image, int) or not 0 <= image < num_images:
        raise DataError(f"{where}: image {quoted(image)} of a row with {num_images} image(s); it counts from 0")
    mask = _mask(given["mask"], where) if "mask" in given else None
    return ImageObject(
        image=image,
        box=_box(given["box"], where) if mask is None else _around(mask),
        mask=mask,
        text=_name(given, "text", where),
        object_id=_name(given, "object_id", where),
        kind=_name(given, "class", where),
        negatives=_negatives(given, where),
        positives=_positives(given, where),
    )


def _name(given: Mapping[str, Any], key: str, where: str) -> str:
    value = given.get(key, "")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{where}: {key} must be text or a whole number, got {quoted(value)}")
    return str(value)


def _negatives(given: Mapping[str, Any], where: str) -> tuple[str, ...]:
    texts = _texts(given, "negatives", where)
    own = str(given.get("text", "")).casefold()
    if any(text.casefold() == own for text in texts):
        raise DataError(f"{where}: its text {quoted(given['text'])} is among its negatives; take it out")
    return texts


def _positives(given: Mapping[str, Any], where: str) -> tuple[str, ...]:
    texts = _texts(given, "positives", where)
    false = {text.casefold() for text in given.get("negatives", ())}
    both = next((text for text in texts if text.casefold() in false), None)
    if both is not None:
        raise DataError(f"{where}: {quoted(both)} is among its positives and its negatives; take it out of one")
    if texts and not _name(given, "text", where):
        raise DataError(f"{where}: positives say the same as its text, and it has none: give it one of them")
    return texts


def _texts(given: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = given.get(key, ())
    texts = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{where}: {key} must be a list of texts, got {quoted(value)}")
    return texts


def _box(value: Any, where: str) -> tuple[float, float, float, float]:
    sides = list(value) if isinstance(value, list | tuple | np.ndarray) else []
    numbers = [float(side) for side in sides if isinstance(side, int | float | np.number)]
    if len(sides) != 4 or len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise DataError(f"{where}: box must be four numbers (left, top, right, bottom), got {quoted(value)}")
    if max(map(abs, numbers)) > 2:
        raise DataError(
            f"{where}: box {numbers} lies far outside its image; sides are shares of the upright image's width and "
            "height (0 to 1): divide pixels by its size"
        )
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _mask(value: Any, where: str) -> Mask:
    if isinstance(value, Mapping):
        return run_length_mask(value, where)
    try:
        found = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        found = np.zeros(0, np.float32)
    if found.ndim != 2 or not found.size or not np.isfinite(found).all() or found.min() < 0 or found.max() > 1:
        raise DataError(f"{where}: mask must be an array (height, width) of 0 and 1, or of shares between them")
    return found


def run_length_mask(value: Mapping[str, Any], where: str) -> Mask:
    """COCO's run lengths: pixels column by column, runs of 0 and of 1 in turn, as numbers or in COCO's text form.

    Raises:
        DataError: If they do not fill the size that they name.
    """
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(isinstance(side, int) for side in size):
        raise DataError(f"{where}: run lengths need size [height, width], got {quoted(size)}")
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", errors="replace")
    runs = _runs(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, Sequence) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise DataError(f"{where}: run lengths need counts, whole numbers or COCO's text, got {quoted(counts)}")
    if sum(runs) != size[0] * size[1]:
        raise DataError(f"{where}: run lengths of {sum(runs)} pixels for a mask of {size[0]} x {size[1]}")
    flat = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.float32)
    return np.ascontiguousarray(flat.reshape(size[1], size[0]).T)


def _runs(text: str) -> list[int]:
    """COCO's text form: numbers in base 32 from the lowest digit on, a sign in the last, each from the third on as the
    difference to the one before the last."""
    runs: list[int] = []
    number = shift = 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64:
            return [-1]
        number |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = shift = 0
    return runs


def _around(mask: Mask) -> tuple[float, float, float, float]:
    """The box that a mask fits into; one without area where it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    height, width = mask.shape
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
