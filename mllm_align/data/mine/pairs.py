"""Rows that hold a pair of images and a text for each, read one by one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mllm_align.data.errors import DataError
from mllm_align.data.images import image_key
from mllm_align.data.loading import IMAGE_COLUMNS
from mllm_align.data.messages import PLACEHOLDER
from mllm_align.data.mine.moved import common_folder, name_below
from mllm_align.data.mine.problems import RowProblem, image_path, read_picture
from mllm_align.data.schema import RESPONSES, Row, missing_column, parse_row, row_name

CATEGORY_COLUMNS = ("category", "kind")
NUM_READ = 32  # image files whose content is looked at to tell inputs apart

Turn = tuple[str, str]


@dataclass(frozen=True)
class ContrastPair:
    """One row that is a pair: `chosen` describes `image`, `rejected` describes `contrast`.

    Attributes:
        id: The row's own id, or `row-` and its number.
        source: Of the row.
        image: As it was given.
        contrast: As it was given.
        turns: The prompt as (role, text), `<image>` where the image stands if that is not the beginning.
        chosen: Its text.
        rejected: Its text.
        category: "" where the row names none.
        extras: Further columns that hold a text or a number.
    """

    id: str
    source: str
    image: Any
    contrast: Any
    turns: tuple[Turn, ...]
    chosen: str
    rejected: str
    category: str
    extras: Mapping[str, Any]


def refuse_unknown_category(rows: Any, category: str | None) -> None:
    """Before a long job, for a column of categories that was named: a slip of the pen would make all of them one.

    Raises:
        DataError: If no row has that column.
    """
    if category is None or not len(rows) or any(category in row for row in rows):
        return
    raise missing_column(category, list(dict.fromkeys(name for row in rows for name in row)), "the rows")


def read_pair(raw: Mapping[str, Any], index: int, category: str | None = None) -> ContrastPair:
    """One row as a pair; images are not read.

    Args:
        raw: A canonical row (`mllm_align.data.schema`).
        index: Its place.
        category: The column that holds its category; `category` or `kind` by default.

    Raises:
        RowProblem: If it lacks a text or an image, has several images, or the same text twice.
    """
    where = row_name(raw, index)
    try:
        row = parse_row(raw, index)
    except DataError as error:
        raise RowProblem(_kind(raw), str(error)) from None
    absent = [column for column in RESPONSES if column not in row.responses]
    if absent:
        raise RowProblem("missing text", f"{where}: no column {absent[0]!r}")
    num_images = len(row.images)
    if row.contrast_images is None:
        column = "contrast_image" if num_images else "image"
        raise RowProblem("missing image", f"{where}: no column {column!r}")
    if num_images != 1:
        raise RowProblem("several images", f"{where}: {num_images} images; a pair has one on each side")
    chosen, rejected = row.responses["chosen"].strip(), row.responses["rejected"].strip()
    if plain(chosen) == plain(rejected):
        raise RowProblem("same texts", f"{where}: chosen and rejected say the same")
    columns = CATEGORY_COLUMNS if category is None else (category,)
    named = next((str(raw[column]) for column in columns if raw.get(column) is not None), "")
    own = {"id", "source", "system", "prompt", "category", *RESPONSES, *IMAGE_COLUMNS}
    return ContrastPair(
        id=row.id if row.id is not None else f"row-{index}",
        source=row.source,
        image=row.images[0],
        contrast=row.contrast_images[0],
        turns=_turns(row),
        chosen=chosen,
        rejected=rejected,
        category=named,
        extras={key: value for key, value in raw.items() if key not in own and _is_scalar(value)},
    )


def _kind(raw: Mapping[str, Any]) -> str:
    """What is wrong with a row that is no canonical one."""
    if any(not str(raw.get(column) or "").strip() for column in ("prompt", *RESPONSES)):
        return "missing text"
    return "invalid row" if any(raw.get(column) for column in ("image", "images")) else "missing image"


def load_pair(pair: ContrastPair) -> tuple[Image.Image, Image.Image]:
    """Both images, upright RGB.

    Raises:
        RowProblem: If a file is missing or damaged, or both show the very same pixels.
    """
    first = read_picture(pair.image, f"{pair.id}, image")
    second = read_picture(pair.contrast, f"{pair.id}, contrast image")
    if first.size == second.size and first.tobytes() == second.tobytes():
        raise RowProblem("same images", f"{pair.id}: image and contrast image are the same")
    return first, second


def _turns(row: Row) -> tuple[Turn, ...]:
    """An image that comes first is where images come by default, so it is left out of a single question."""
    turns = []
    for message in row.messages:
        parts = (PLACEHOLDER if part["type"] == "image" else part["text"] for part in message["content"])
        turns.append((message["role"], "".join(parts)))
    users = [number for number, (role, _) in enumerate(turns) if role == "user"]
    role, text = turns[users[0]]
    turns[users[0]] = (role, text.removeprefix(PLACEHOLDER))
    return tuple(turns)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)


def plain(text: str) -> str:
    """A text without what does not count when two are compared: case, white space, the last full stop."""
    return " ".join(text.casefold().split()).removesuffix(".")


def pixel_digest(image: Image.Image) -> str:
    """Equal for equal pixels; of an RGB image."""
    return hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).hexdigest()


def input_digest(rows: Sequence[Mapping[str, Any]]) -> str:
    """Equal for equal rows: their values, and of image files name and size.

    Names are those below the folder that holds all of the images, so that one that moved gives the same; the content
    of 32 files, evenly spread over the rows, tells two folders with the same names apart.
    """
    folder, num_files = None, 0
    for number in range(len(rows)):
        files = _image_files(rows[number])
        folder, num_files = common_folder(files, folder), num_files + len(files)
    every = max(1, num_files // NUM_READ)
    total, seen = hashlib.blake2b(digest_size=16), 0
    for number in range(len(rows)):
        row = rows[number]
        described = {
            key: _described(value, key in IMAGE_COLUMNS, folder) for key, value in row.items() if value is not None
        }
        total.update(json.dumps(described, sort_keys=True, default=str).encode())
        for path in _image_files(row):
            if seen % every == 0 and path.is_file():
                total.update(path.read_bytes())
            seen += 1
    return total.hexdigest()


def _image_files(row: Mapping[str, Any]) -> list[Path]:
    found = []
    for column in IMAGE_COLUMNS:
        value = row.get(column)
        values = value if isinstance(value, list | tuple) else [value]
        found += [path for each in values if each is not None and (path := image_path(each)) is not None]
    return found


def image_name(value: Any) -> str:
    """A name that is equal for the same file or equal content; files are not read."""
    path = image_path(value)
    return os.path.abspath(path) if path is not None else image_key(value)


def _described(value: Any, image: bool, folder: str | None) -> Any:
    if value is None or (_is_scalar(value) and not image):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_described(entry, image, folder) for entry in value]
    path = image_path(value) if image or isinstance(value, os.PathLike) else None
    if path is not None:
        return [name_below(path, folder), path.stat().st_size if path.is_file() else None]
    if isinstance(value, Mapping) and value.get("bytes") is None:
        return {key: _described(entry, image, folder) for key, entry in value.items()}
    try:
        return image_key(value)
    except DataError:
        return str(value)[:100]
