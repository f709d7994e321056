"""COCO's instances, and whatever is annotated as they are (LVIS, Objects365, OpenImages, RefCOCO in this form).

A file with `images`, `annotations` and `categories`, read as a whole; or rows of one image each,
{"image": {"file_name": "1.jpg", "width": 640, "height": 480}, "annotations": [{"bbox": [10, 20, 30, 40], ...}],
 "categories": [{"id": 1, "name": "cat"}]}

Objects are called by their annotation's `caption`, else by the name of their class; their id is `instance_id`, which
says that one is the same in another image, else the annotation's own. Crowds are left out. Rows have no response.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mllm_align.data.annotations import image_row
from mllm_align.data.errors import DataError, quoted


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """A canonical row with `objects` and no response."""
    kinds = {each["id"]: each["name"] for each in row.get("categories") or ()}
    return image_row(row["image"], row["annotations"], kinds, f"image {quoted(row['image'].get('file_name'))}")


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of annotations, one an image, in its order.

    Raises:
        DataError: If it is no such file; what is wrong with an image is said when that is read.
    """
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    absent = [key for key in ("images", "annotations") if not isinstance(whole, dict) or key not in whole]
    if absent:
        raise DataError(f"{path} is no file of COCO's: it has no {absent[0]!r}")
    of_image: dict[Any, list[Any]] = {}
    for annotation in whole["annotations"]:
        of_image.setdefault(annotation.get("image_id"), []).append(annotation)
    unknown = set(of_image) - {image.get("id") for image in whole["images"]}
    if unknown:
        raise DataError(f"{path}: annotations of image {sorted(map(str, unknown))[0]}, which is not among its images")
    categories = whole.get("categories") or []
    for image in whole["images"]:
        yield {"image": image, "annotations": of_image.get(image.get("id"), []), "categories": categories}
