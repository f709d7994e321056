"""Rows of published tables: JSON lines, Parquet with pictures inside, datasets of the Hub."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mllm_align_eval.benchmarks.files import PictureFolder, read_lines
from mllm_align_eval.items import Picture

IMAGE = "image"


class Row(NamedTuple):
    """One row.

    Attributes:
        where: File and line, for messages.
        values: By column; without a picture that lies inside the table.
        name: Of its picture; "" where the table has none.
        load: Returns the picture that lies inside the table; None where it is a file.
    """

    where: str
    values: Mapping[str, Any]
    name: str
    load: Callable[[], Image.Image] | None = None

    def picture(self, pictures: PictureFolder) -> Picture:
        """Its picture, from the table or from a folder."""
        return Picture(self.name, self.load) if self.load is not None else pictures(self.name)


def table_rows(folder: Path, columns: Iterable[str], origin: str) -> Iterator[Row]:
    """The rows of all `.jsonl` and `.parquet` files of a folder, by file name.

    Of files that differ in their ending alone the `.jsonl` is read: they hold the same questions.

    Raises:
        FileNotFoundError: If there is no such file; with its origin.
        ValueError: Naming the file that lacks a column, or the line.
    """
    wanted = tuple(columns)
    files = {path.stem: path for ending in ("parquet", "jsonl") for path in folder.glob(f"*.{ending}")}
    if not files:
        raise FileNotFoundError(f"no .jsonl or .parquet file in {folder}: get it from {origin}")
    for stem in sorted(files):
        if files[stem].suffix == ".parquet":
            yield from _parquet_rows(files[stem], wanted, origin)
            continue
        for number, values in read_lines(files[stem], wanted, origin):
            yield Row(f"{files[stem]}, line {number}", values, str(values.get(IMAGE) or ""))


def hub_rows(rows: Sequence[Mapping[str, Any]], column: str = IMAGE) -> Iterator[Row]:
    """The rows of a dataset of the Hub, of which `column` is a decoded picture or None; it is kept in no row."""
    for index in range(len(rows)):
        values = rows[index]
        shown = values.get(column) is not None
        kept = {name: value for name, value in values.items() if name != column}
        load = partial(_from_rows, rows, index, column) if shown else None
        yield Row(f"row {index}", kept, f"{column} of row {index}" if shown else "", load)


def image_names(rows: Any, column: str = IMAGE) -> list[str]:
    """Per row of a dataset of the Hub a name made of its picture's encoded bytes, the same for the same picture."""
    encoded = rows.cast_column(column, datasets.Image(decode=False))[column]
    return [hashlib.sha256(image["bytes"] or str(image["path"]).encode()).hexdigest()[:16] for image in encoded]


def _from_rows(rows: Sequence[Mapping[str, Any]], index: int, column: str) -> Image.Image:
    return rows[index][column].convert("RGB")


def _parquet_rows(path: Path, columns: Sequence[str], origin: str) -> Iterator[Row]:
    try:
        schema = pq.read_schema(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not Parquet: {error}") from error
    missing = sorted(set(columns) - set(schema.names))
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; get it from {origin}")
    inside = IMAGE in schema.names and pa.types.is_struct(schema.field(IMAGE).type)
    # The pictures' bytes are most of the file, and are read when they are shown.
    read = [f"{IMAGE}.path" if inside and name == IMAGE else name for name in schema.names]
    for index, values in enumerate(pq.ParquetFile(path).read(columns=read).to_pylist()):
        where = f"{path}, row {index}"
        if not inside:
            yield Row(where, values, str(values.get(IMAGE) or ""))
            continue
        name = (values.pop(IMAGE) or {}).get("path") or f"{path.name}/{index}"
        yield Row(where, values, name, partial(_from_parquet, path, index))


def _from_parquet(path: Path, index: int) -> Image.Image:
    """The picture of a row.

    Raises:
        ValueError: If it cannot be read.
    """
    file, group = pq.ParquetFile(path), 0
    offset = index
    while offset >= file.metadata.row_group(group).num_rows:
        offset -= file.metadata.row_group(group).num_rows
        group += 1
    try:
        with Image.open(io.BytesIO(_group_bytes(path, group)[offset] or b"")) as image:
            return image.convert("RGB")
    except OSError as error:
        raise ValueError(f"cannot read the image of {path}, row {index}: {error}") from error


@lru_cache(maxsize=1)
def _group_bytes(path: Path, group: int) -> list[bytes | None]:
    """The encoded pictures of a row group; neighbours are shown after one another, so the last one is kept."""
    table = pq.ParquetFile(path).read_row_group(group, columns=[f"{IMAGE}.bytes"])
    return [(value or {}).get("bytes") for value in table.column(IMAGE).to_pylist()]
