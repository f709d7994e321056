"""The rows of a user's own table of questions, and the pictures that it names or holds."""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from mllm_align_eval.benchmarks.files import PictureFolder, read_lines
from mllm_align_eval.items import Picture

LONGEST_NAME = 255  # characters of a path's last part; what is longer and all base64 is a picture
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")


class OwnRow(NamedTuple):
    """One row, its place in words for messages, and its number."""

    where: str
    number: int
    values: Mapping[str, Any]

    def get(self, *columns: str) -> Any:
        """The value of the first of the columns that is filled; None where none is."""
        for column in columns:
            value = self.values.get(column)
            value = value.strip() if isinstance(value, str) else value
            if value is not None and value != "" and value != []:
                return value
        return None

    def list(self, column: str) -> list[Any]:
        """The values of a column that holds several, which in a cell of a table are a JSON list.

        Raises:
            ValueError: If a cell begins as a list and is none.
        """
        value = self.get(column)
        if isinstance(value, str) and value.startswith("["):
            try:
                return list(json.loads(value))
            except (ValueError, TypeError) as error:
                raise self.error(column, f"begins with [ and is no JSON list ({error})") from error
        return [] if value is None else list(value) if isinstance(value, list) else [value]

    def error(self, column: str, text: str) -> ValueError:
        """What is wrong with a column."""
        return ValueError(f"{self.where}, column {column}: {text}")


def own_rows(path: Path, origin: str) -> Iterator[OwnRow]:
    """The rows of a .jsonl, .tsv or .csv file.

    Raises:
        ValueError: If the file is no such table; naming the line.
    """
    try:
        if path.suffix == ".jsonl":
            for number, values in read_lines(path, (), origin):
                yield OwnRow(f"{path}, line {number}", number, values)
            return
        csv.field_size_limit(sys.maxsize)  # pictures lie in cells
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            for values in reader:
                where = f"{path}, line {reader.line_num}"
                if None in values:
                    raise ValueError(f"{where}: more cells than the first line has columns")
                yield OwnRow(where, reader.line_num, values)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


def own_pictures(row: OwnRow, pictures: PictureFolder, held: dict[str, Picture]) -> tuple[tuple[Picture, ...], bool]:
    """The pictures of a row, and whether they are files.

    Args:
        row: Its column `image` or `image_path` holds a file's name, base64, or a list of these.
        pictures: Where files are.
        held: The picture of each earlier row that holds it, by the row's id. A row may name another one's picture by
            its id, as VLMEvalKit's tables do where several questions are about one picture; this one's is added.

    Raises:
        ValueError: If a row has no picture, or one that is neither.
    """
    column = next((name for name in ("image", "image_path") if row.get(name) is not None), None)
    if column is None:
        raise row.error("image", "is empty; give a file's name, or the picture in base64")
    found: list[Picture] = []
    is_file = False
    for value in row.list(column):
        if not isinstance(value, str):
            raise row.error(column, f"{value!r} is neither a file's name nor base64")
        text = value.partition("base64,")[2] if value.startswith("data:image/") else value
        if text in held:
            found.append(held[text])
        elif text is not value or (len(text) > LONGEST_NAME and _BASE64.fullmatch(text)):
            name = hashlib.sha256(text.encode()).hexdigest()[:16]
            found.append(Picture(name, partial(_decoded, text, f"{row.where}, column {column}")))
        else:
            found.append(pictures(text))
            is_file = True
    key = row.get("id", "index")
    if key is not None and len(found) == 1 and not is_file:
        held[str(key)] = found[0]
    return tuple(found), is_file


def _decoded(text: str, where: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(base64.b64decode(text))) as image:
            return image.convert("RGB")
    except (OSError, binascii.Error) as error:
        raise ValueError(f"{where}: the base64 there is no picture ({error})") from error
