"""SA-1B (Kirillov et al., 2023), https://arxiv.org/abs/2304.02643: a JSON file beside each image.

{"image": {"image_id": 1, "file_name": "sa_1.jpg", "width": 1500, "height": 2250},
 "annotations": [{"id": 7, "bbox": [...], "area": 9000, "segmentation": {"size": [...], "counts": "..."}, ...}]}

A folder of such files is read file by file. Masks have no names: they are things for region contrast, which nest (a
part and its whole are both there). At most 32 a row are kept, evenly from the smallest to the largest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mllm_align.data.annotations import image_row
from mllm_align.data.errors import DataError, quoted

MOST = 32


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """A canonical row with `objects` and no response."""
    annotations = sorted(row["annotations"], key=lambda each: each.get("area") or 0)
    count = min(len(annotations), MOST)
    kept = [annotations[(2 * place + 1) * len(annotations) // (2 * count)] for place in range(count)]
    return image_row(row["image"], kept, {}, f"image {quoted(row['image'].get('file_name'))}")


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a folder, one a file, by name; or of one file.

    Raises:
        DataError: If a file is none of SA-1B's.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"folder {path} holds no .json files: SA-1B has one beside each image")
    for file in files:
        try:
            row = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{file} cannot be read as JSON: {error}") from error
        if not isinstance(row, dict) or not {"image", "annotations"} <= row.keys():
            raise DataError(f"{file} is no file of SA-1B's: it must have 'image' and 'annotations'")
        yield {"image": row["image"], "annotations": row["annotations"]}
