"""Objects as COCO and its relatives annotate them, as entries of the column `objects`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from PIL import Image

from mllm_align.data.errors import DataError, quoted
from mllm_align.data.objects import Mask, run_length_mask

# Longest side of a mask: a token covers about ten of its pixels at 48 tokens a side.
LONGEST = 512
_TEXT = datasets.Value("string")
# Of rows that are written to a table: none of the first ones may have what a later one has.
FEATURES = datasets.Features(
    {
        "id": _TEXT,
        "image": _TEXT,
        "prompt": _TEXT,
        "objects": datasets.List(
            {
                "box": datasets.List(datasets.Value("float64")),
                "mask": {
                    "size": datasets.List(datasets.Value("int64")),
                    "counts": datasets.List(datasets.Value("int64")),
                },
                "text": _TEXT,
                "object_id": _TEXT,
                "class": _TEXT,
            }
        ),
    }
)


def annotated_object(annotation: Mapping[str, Any], width: int, height: int, where: str) -> dict[str, Any] | None:
    """Where one annotation is: `{"mask": run lengths}` if it has a segmentation that covers something, else `{"box"}`.

    A polygon has the pixels whose centres lie within it; pycocotools follows its outline more finely, which moves the
    border by less than a pixel. Masks of more than 512 pixels on a side are shrunk to that.

    Args:
        annotation: `bbox` (left, top, width and height in pixels) and, or, `segmentation` (polygons or run lengths).
        width: Of the upright image, in pixels.
        height: Likewise.
        where: How errors speak of it.

    Returns:
        None for a crowd, and for a box of less than a pixel's width or height within the image.

    Raises:
        DataError: If it has neither, or one of another form.
    """
    if annotation.get("iscrowd"):
        return None
    segmentation = annotation.get("segmentation")
    if segmentation:
        found = shrunk(_filled(segmentation, width, height, where))
        if found.any():
            return {"mask": run_lengths(found)}
    if annotation.get("bbox") is None:
        if segmentation:
            return None
        raise DataError(
            f"{where}: no 'bbox' and no 'segmentation'; it has {', '.join(map(str, annotation)) or 'nothing'}"
        )
    box = _shares(annotation["bbox"], width, height, where)
    return None if box is None else {"box": box}


def _shares(value: Any, width: int, height: int, where: str) -> list[float] | None:
    numbers = list(value) if isinstance(value, list | tuple) else []
    if len(numbers) != 4 or not all(isinstance(side, int | float) and math.isfinite(side) for side in numbers):
        raise DataError(f"{where}: bbox must be left, top, width and height in pixels, got {quoted(value)}")
    left, top, right, bottom = numbers[0], numbers[1], numbers[0] + numbers[2], numbers[1] + numbers[3]
    left, right = (min(max(side, 0), width) for side in (left, right))
    top, bottom = (min(max(side, 0), height) for side in (top, bottom))
    if right - left < 1 or bottom - top < 1:
        return None
    return [left / width, top / height, right / width, bottom / height]


def _filled(segmentation: Any, width: int, height: int, where: str) -> Mask:
    if isinstance(segmentation, Mapping):
        return run_length_mask(segmentation, where)
    polygons: Sequence[Any] = segmentation if isinstance(segmentation, list | tuple) else [None]
    mask = np.zeros((height, width), dtype=np.float32)
    for polygon in polygons:
        sound = isinstance(polygon, list | tuple) and len(polygon) >= 6 and len(polygon) % 2 == 0
        if not sound or not all(isinstance(side, int | float) for side in polygon):
            raise DataError(
                f"{where}: segmentation must be polygons [[x, y, x, y, x, y, ...], ...] or run lengths, got "
                f"{quoted(segmentation)}"
            )
        _fill(mask, np.array(polygon, dtype=np.float64).reshape(-1, 2))
    return mask


def _fill(mask: Mask, corners: np.ndarray) -> None:
    """Sets the pixels whose centres lie within a polygon (N, 2), line by line."""
    height, width = mask.shape
    x, y = corners.T
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    for row in range(max(0, int(y.min())), min(height, int(y.max()) + 1)):
        middle = row + 0.5
        crosses = (y <= middle) != (next_y <= middle)
        share = (middle - y[crosses]) / (next_y[crosses] - y[crosses])
        edges = np.sort(x[crosses] + share * (next_x[crosses] - x[crosses]))
        places = np.clip(np.ceil(edges - 0.5), 0, width).astype(int)
        for start, stop in zip(places[::2], places[1::2], strict=True):
            mask[row, start:stop] = 1


def shrunk(mask: Mask) -> Mask:
    """A mask of at most 512 pixels a side: those of which half is covered."""
    height, width = mask.shape
    scale = LONGEST / max(height, width)
    if scale >= 1:
        return mask
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray((mask * 255).astype(np.uint8)).resize(size, Image.Resampling.BOX)
    return (np.asarray(image) >= 128).astype(np.float32)


def run_lengths(mask: Mask) -> dict[str, list[int]]:
    """COCO's run lengths of a mask (height, width) of 0 and 1, as numbers."""
    flat = mask.T.flatten() > 0.5
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    ends = [0, *changes.tolist(), flat.size]
    counts = np.diff(ends).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def image_row(
    image: Mapping[str, Any], annotations: Sequence[Any], kinds: Mapping[Any, str], where: str
) -> dict[str, Any]:
    """A canonical row of one image with its annotations.

    Args:
        image: `file_name`, `width` and `height`.
        annotations: As for `annotated_object`, with `category_id`, `caption`, `instance_id` or `id` where they have
            them. What it is called is the caption, else the name of its class.
        kinds: Names of classes by id.
        where: How errors speak of the image.

    Raises:
        DataError: If the image lacks something, or an annotation is of another form.
    """
    absent = [name for name in ("file_name", "width", "height") if not image.get(name)]
    if absent:
        raise DataError(f"{where}: no {absent[0]!r}; it has {', '.join(map(str, image)) or 'nothing'}")
    objects = []
    for place, annotation in enumerate(annotations):
        own = f"{where}, annotation {place}"
        if not isinstance(annotation, Mapping):
            raise DataError(f"{own}: must be a mapping, got {quoted(annotation)}")
        category = annotation.get("category_id")
        if category is not None and kinds and category not in kinds:
            raise DataError(f"{own}: category_id {category!r} is not among the {len(kinds)} categories of the file")
        found = annotated_object(annotation, image["width"], image["height"], own)
        if found is not None:
            kind = kinds.get(category, "")
            number = annotation.get("instance_id", annotation.get("id"))
            named = {"text": annotation.get("caption") or kind, "class": kind}
            objects.append({**found, **named, "object_id": "" if number is None else str(number)})
    name = image.get("id", image.get("image_id", image["file_name"]))
    return {"id": str(name), "image": image["file_name"], "prompt": "What is in the picture?", "objects": objects}
