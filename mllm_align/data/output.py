"""Rows that were made, written where the user asked: one file, its pictures beside it, nothing else touched."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mllm_align.data.errors import DataError
from mllm_align.data.files import as_text, write_whole
from mllm_align.data.images import load_image
from mllm_align.data.loading import IMAGE_COLUMNS

SUFFIXES = (".jsonl", ".parquet")


class RowFile:
    """One output file of rows, which `load_rows` reads.

    Images given as files stay where they are and are named by path, relative to the output's folder where they lie
    in it; all others are saved once each in `<name>_images/`, named by their content.

    Args:
        path: The file: .jsonl or .parquet.
        overwrite: Whether a file that is there, with another content, may be replaced.

    Raises:
        DataError: If the suffix is none of these.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self.path = Path(path).expanduser()
        self.overwrite = overwrite
        self.work_folder = self.path.with_name(f"{self.path.name}.work")
        if self.path.suffix not in SUFFIXES:
            raise DataError(f"{self.path}: rows are written to {' or '.join(SUFFIXES)} files, not this")

    def part(self, name: str) -> RowFile:
        """A further output of the same job: `<stem>_<name>` beside this one."""
        other = RowFile(self.path.with_stem(f"{self.path.stem}_{name}"), overwrite=self.overwrite)
        other.work_folder = self.work_folder
        return other

    @property
    def report_path(self) -> Path:
        """Where the report of the job is: `<name>.report.json` beside the file."""
        return self.path.with_name(f"{self.path.name}.report.json")

    @property
    def image_folder(self) -> Path:
        """Where pictures are saved that are no files."""
        return self.path.with_name(f"{self.path.stem}_images")

    def refuse_other(self) -> None:
        """To be called before a long job: refuses an output that something else has made.

        Raises:
            FileExistsError: If the file or its report is there and its job is not.
        """
        for path in (self.path, self.report_path):
            if path.exists() and not self.overwrite and not self.work_folder.exists():
                raise FileExistsError(f"{path} is there already and is kept: name another output, or --overwrite")

    def write(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """Writes all rows; the very same content twice is no error.

        Returns:
            How many rows there are.

        Raises:
            FileExistsError: If the file is there with another content and may not be replaced.
        """
        stored = [self._stored(row) for row in rows]
        _write([(self, self._encoded(stored))])
        return len(stored)

    def refuse_changed(self, content: bytes) -> None:
        """Refuses to replace a file that holds something else.

        Raises:
            FileExistsError: If there is one and it may not be replaced.
        """
        if self.path.exists() and not self.overwrite and self.path.read_bytes() != content:
            raise FileExistsError(
                f"{self.path} is there with other rows and is kept: name another output, or --overwrite"
            )

    def encoded(self, rows: Iterable[Mapping[str, Any]]) -> bytes:
        """What the file would hold; pictures that are no files are saved."""
        return self._encoded([self._stored(row) for row in rows])

    def _stored(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row with images as paths."""
        new = {name: as_text(value) if isinstance(value, str) else value for name, value in row.items()}
        for column in IMAGE_COLUMNS:
            value = row.get(column)
            if isinstance(value, list | tuple):
                new[column] = [self._name(image) for image in value]
            elif value is not None:
                new[column] = self._name(value)
        return new

    def _name(self, image: Any) -> str:
        if isinstance(image, Mapping) and image.get("bytes") is None:
            image = image.get("path")
        path = Path(os.path.abspath(Path(image).expanduser())) if isinstance(image, str | os.PathLike) else None
        # A name that is no Unicode cannot be written down, so that picture is saved under another.
        if path is not None and as_text(str(path)) == str(path):
            folder = Path(os.path.abspath(self.path.parent))
            return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
        pixels = image if isinstance(image, Image.Image) and image.mode == "RGB" else load_image(image)
        digest = hashlib.blake2b(f"{pixels.size}".encode() + pixels.tobytes(), digest_size=16).hexdigest()
        path = self.image_folder / f"{digest}.png"
        if not path.exists():
            sink = io.BytesIO()
            pixels.save(sink, "PNG")
            write_whole(path, sink.getvalue())
        return f"{self.image_folder.name}/{path.name}"

    def _encoded(self, rows: list[dict[str, Any]]) -> bytes:
        columns = dict.fromkeys(name for row in rows for name in row)  # in every row, for Parquet and JSON
        rows = [{name: row.get(name) for name in columns} for row in rows]
        if self.path.suffix == ".jsonl":
            lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
            return "".join(lines).encode()
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink, compression="zstd")
        return sink.getvalue()


def write_together(parts: Sequence[tuple[RowFile, Iterable[Mapping[str, Any]]]]) -> None:
    """Writes several files, or none of them where one may not be replaced.

    Raises:
        FileExistsError: If one is there with another content and may not be replaced.
    """
    _write([(file, file.encoded(rows)) for file, rows in parts])


def _write(contents: Sequence[tuple[RowFile, bytes]]) -> None:
    for file, content in contents:
        file.refuse_changed(content)
    for file, content in contents:
        write_whole(file.path, content)
