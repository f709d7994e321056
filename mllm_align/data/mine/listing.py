"""What images there are to embed: the files of a folder, or a column of rows, with what tells rows apart."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from mllm_align.data.blocks import SETTINGS
from mllm_align.data.errors import DataError
from mllm_align.data.loading import undecoded
from mllm_align.data.mine.moved import common_folder, name_below
from mllm_align.data.schema import missing_column

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
ROW_FILES = (".arrow", ".csv", ".json", ".jsonl", ".parquet")
_OF_JOBS = (SETTINGS, "block-", "index.", ".")


@dataclass(frozen=True)
class Listing:
    """Images by row number; what they hold is read when it is asked for.

    Attributes:
        keys: Path of each row's image as it was given; "" where it is no file.
        ids: Id of each row, or None.
        groups: Group of each row, or None.
        same_as: For each row the first row that names the same file; itself where it is the first, or no file.
        ignored: Files of the folder that are no images by their suffix.
        rows: Where images are held, by row and `column`; None where `keys` name all of them.
        column: Its column.
    """

    keys: Sequence[str]
    ids: Sequence[str | None]
    groups: Sequence[str | None]
    same_as: Sequence[int]
    ignored: int = 0
    rows: Any = None
    column: str = ""

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, row: int) -> Any:
        """What `load_image` reads.

        Raises:
            DataError: If the row has no image, or several.
        """
        if self.rows is None:
            return self.keys[row]
        value = self.rows[row].get(self.column)
        if isinstance(value, list | tuple):
            if len(value) > 1:
                raise DataError(f"row {row}: {len(value)} images in column {self.column!r}, where one is wanted")
            value = value[0] if value else None
        if value is None:
            raise DataError(f"row {row}: no image in column {self.column!r}")
        return value

    def state(self, row: int) -> tuple[int | None, int | None]:
        """Size in bytes and time of the last change in nanoseconds of a row's file; None where there is none."""
        try:
            found = os.stat(os.path.expanduser(self.keys[row]))
        except (OSError, ValueError):
            return None, None
        return found.st_size, found.st_mtime_ns

    @property
    def digest(self) -> str:
        """Of what is listed, not of what the images hold; files by their names below the folder that holds all."""
        digest = hashlib.blake2b(digest_size=16)
        folder = common_folder(key for key in self.keys if key)
        keys = self.ids if self.rows is None else [name_below(key, folder) if key else "" for key in self.keys]
        for entry in zip(keys, self.ids, self.groups, strict=True):
            digest.update(repr(entry).encode())
        return digest.hexdigest()

    @property
    def repeated_ids(self) -> list[str]:
        """Ids that several rows have whose images are not the same file."""
        seen: dict[str, int] = {}
        repeated: dict[str, None] = {}
        for row, name in enumerate(self.ids):
            if name is not None and self.same_as[seen.setdefault(name, row)] != self.same_as[row]:
                repeated[name] = None
        return list(repeated)


def list_images(
    images: str | os.PathLike[str] | Sequence[Mapping[str, Any]] | datasets.Dataset,
    column: str = "image",
    group: str | None = None,
) -> Listing:
    """The images of a folder, searched below too and sorted by name, or of a column of rows.

    Raises:
        DataError: If there is no such folder or column, or nothing in it.
    """
    if isinstance(images, str | os.PathLike):
        return _of_folder(Path(images).expanduser())
    if isinstance(images, datasets.IterableDataset):
        raise DataError("images are embedded by row number, which a stream has not: load rows without streaming")
    return _of_rows(undecoded(images), column, group)


def is_image_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds images and nothing that `load_rows` would read as rows."""
    folder = Path(path).expanduser()
    suffixes = {file.suffix.lower() for file in _files(folder)} if folder.is_dir() else set()
    return bool(suffixes & set(SUFFIXES)) and not suffixes & set(ROW_FILES)


def _of_folder(folder: Path) -> Listing:
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    files = _files(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in files if path.suffix.lower() in SUFFIXES)
    if not names:
        raise DataError(f"folder {folder} holds no images ({', '.join(SUFFIXES)})")
    keys = [str(folder / name) for name in names]
    return Listing(keys, names, [None] * len(names), range(len(names)), len(files) - len(names))


def _files(folder: Path) -> list[Path]:
    """The files of a folder and those below; what a job keeps there (vectors of these images, maybe) is not of it."""
    found = []
    for place, _, names in os.walk(folder):
        if SETTINGS not in names or not all(name.startswith(_OF_JOBS) for name in names):
            found += [Path(place, name) for name in names if not name.startswith(".")]
    return [path for path in found if path.is_file()]


def _of_rows(rows: Any, column: str, group: str | None) -> Listing:
    if not len(rows):
        raise DataError("there are no rows, so no images to embed")
    wanted = [column, *([group] if group else [])]
    whole = isinstance(rows, datasets.Dataset)
    columns, keys, ids, groups = (_of_dataset if whole else _of_mappings)(rows, *wanted)
    for name in wanted:
        if name not in columns:
            raise missing_column(name, columns, "the rows")
    first: dict[str, int] = {}
    same_as = [first.setdefault(key, row) if key else row for row, key in enumerate(keys)]
    held = rows.select_columns([column]) if whole else rows
    return Listing(keys, ids, groups, same_as, rows=held, column=column)


_Read = tuple[list[str], list[str], list[str | None], list[str | None]]


def _of_dataset(rows: datasets.Dataset, column: str, group: str | None = None) -> _Read:
    """Columns; path, id and group of each row. A column that holds images is not read for it."""
    feature: Any = rows.features.get(column)
    feature = feature.feature if isinstance(feature, datasets.List) else feature
    nothing: list[str | None] = [None] * len(rows)
    keys = [_path_of(value) for value in rows[column]] if isinstance(feature, datasets.Value) else [""] * len(rows)
    ids, groups = (
        [_name(value) for value in rows[name]] if name in rows.column_names else nothing for name in ("id", group)
    )
    return rows.column_names, keys, ids, groups


def _of_mappings(rows: Sequence[Mapping[str, Any]], column: str, group: str | None = None) -> _Read:
    """The same in one pass, which keeps no row."""
    columns: dict[str, None] = {}
    read: _Read = [], [], [], []
    for row in rows:
        columns.update(dict.fromkeys(row))
        read[1].append(_path_of(row.get(column)))
        read[2].append(_name(row.get("id")))
        read[3].append(_name(row.get(group)) if group else None)
    return list(columns), *read[1:]


def _path_of(value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return os.fspath(value) if isinstance(value, str | os.PathLike) else ""


def _name(value: Any) -> str | None:
    return None if value is None else str(value)
