"""A finished folder of embeddings, read without the model that made them, a block at a time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mllm_align.data.blocks import PROBLEM, SETTINGS

VECTOR = "embedding"


def embedding_schema(dim: int, precision: str) -> pa.Schema:
    """Columns of the Parquet files; see `Embeddings`."""
    number = pa.float16() if precision == "float16" else pa.float32()
    return pa.schema(
        [
            ("row", pa.int64()),
            ("id", pa.string()),
            ("key", pa.string()),
            ("group", pa.string()),
            ("same_as", pa.int64()),
            ("file_size", pa.int64()),
            ("file_time", pa.int64()),
            ("digest", pa.binary(16)),
            (VECTOR, pa.list_(number, dim)),
            (PROBLEM, pa.string()),
        ]
    )


def block_path(folder: Path, number: int) -> Path:
    """The file of a block that `BlockJob` wrote."""
    return folder / f"block-{number:06d}.parquet"


class Embeddings:
    """What `embed_images` made. An image stands under the first row that shows it.

    A record of its files is a row of the input: `row`, its `id`, the path of its image (`key`), its `group`, the
    `file_size` in bytes and `file_time` of the last change in nanoseconds (where the image is a file), the `digest` of
    its pixels, the `embedding`; instead of the last two `same_as`, an earlier row with the same file, or a `problem`.

    Args:
        folder: Where they are.

    Attributes:
        num_rows: Rows of the input.
        block_size: Rows of one file.
        shown_by: (num_rows,) int64: the first row that shows the same image, by file or by pixels; -1 where it could
            not be read.
        rows: (N,) int64, rising: the rows under which the N distinct images stand; `rows[i]` is that of vector i.
        dim: Length of a vector.
        problems: Row -> why its image could not be used.

    Raises:
        FileNotFoundError: If there are none, or the job that makes them has not finished.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not (self.folder / SETTINGS).is_file():
            raise FileNotFoundError(f"{folder} holds no embeddings: make them with `mllm-align data embed`")
        self._settings = (self.folder / SETTINGS).read_bytes()
        settings = json.loads(self._settings)
        if settings.get("job") != "embed":
            raise FileNotFoundError(f"{folder} holds another job's result, not embeddings")
        self.num_rows, self.block_size, self.dim = settings["rows"], settings["block_size"], settings["dim"]
        self._schema = embedding_schema(self.dim, settings["precision"])
        self._paths = [block_path(self.folder, number) for number in range(-(-self.num_rows // self.block_size))]
        for path in self._paths:
            if not path.exists():
                raise FileNotFoundError(f"{path} is not there: the embedding has not finished; start it again")
        light = self._light(["same_as", "digest", PROBLEM])
        self.shown_by = _shown_by(light)
        self.rows = np.flatnonzero(self.shown_by == np.arange(self.num_rows))
        bad = np.flatnonzero(light[PROBLEM].is_valid().to_numpy()).tolist()
        identity = hashlib.blake2b(self._settings, digest_size=8)
        for digest in light["digest"].to_pylist():
            identity.update(digest or b"none")
        self._identity = identity.hexdigest()
        self.problems: dict[int, str] = {row: light[PROBLEM][row].as_py() for row in bad}

    def __len__(self) -> int:
        """N: how many distinct images there are."""
        return len(self.rows)

    def __iter__(self) -> Iterator[np.ndarray]:
        """The vectors of the distinct images in the order of `rows`: arrays (n, d), one per file."""
        for number in range(self.num_blocks):
            yield self.block(number)[1]

    @property
    def num_blocks(self) -> int:
        """How many files there are."""
        return len(self._paths)

    @property
    def identity(self) -> str:
        """Tells these embeddings apart from others, also of the same files when they held something else."""
        return self._identity

    def block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows (n,) of the distinct images in one file, and their vectors (n, d): float32, of length 1."""
        table = pq.read_table(self._paths[number], columns=["row", VECTOR], schema=self._schema)
        table = table.filter(table[VECTOR].is_valid())
        rows = table["row"].to_numpy()
        vectors = table[VECTOR].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, self.dim)
        distinct = self.shown_by[rows] == rows
        vectors = vectors[distinct].astype(np.float32)
        if pa.types.is_float16(self._schema.field(VECTOR).type.value_type):  # rounded, so no longer of length 1
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return rows[distinct], vectors

    def array(self) -> np.ndarray:
        """All vectors at once, (N, d) float32."""
        return np.concatenate([*self, np.empty((0, self.dim), np.float32)])

    def labels(self, column: str) -> np.ndarray:
        """(num_rows,) int64: equal where `id` or `group` is; -1 where it is None."""
        codes = self._light([column])[column].combine_chunks().dictionary_encode().indices
        return codes.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)

    def column(self, name: str) -> list[Any]:
        """(num_rows,) what a column holds: `id`, `key`, `group` or `digest`."""
        return self._light([name])[name].to_pylist()

    def summary(self) -> str:
        """How many there are, how many rows show one that an earlier row shows, and what could not be used."""
        copies = int((self.shown_by >= 0).sum()) - len(self)
        parts = [f"{len(self)} images of {self.num_rows} rows in {self.folder}"]
        if copies:
            parts.append(f"{copies} rows show an image of an earlier row")
        if self.problems:
            row, text = next(iter(self.problems.items()))
            file = self._paths[row // self.block_size].name
            parts.append(
                f"{len(self.problems)} images could not be used and are left out, first: {text} (replace their files "
                f"and embed again; images that rows hold are read again once {file} is deleted)"
            )
        return "; ".join(parts)

    def _light(self, columns: list[str]) -> pa.Table:
        """Some columns of all files, without the vectors."""
        schema = pa.schema([self._schema.field(name) for name in columns])
        parts = [pq.read_table(path, columns=columns, schema=self._schema).cast(schema) for path in self._paths]
        return pa.concat_tables(parts) if parts else schema.empty_table()


def _shown_by(light: Any) -> np.ndarray:
    """The first row that shows the same image as each."""
    rows = np.arange(light.num_rows)
    digests = light["digest"].combine_chunks()
    codes = digests.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    _, first, code = np.unique(codes, return_index=True, return_inverse=True)
    shown = np.where(codes >= 0, first[code] if len(rows) else rows, -1)
    named = light["same_as"].combine_chunks().fill_null(-1).to_numpy(zero_copy_only=False)
    return np.where(named >= 0, shown[named], shown).astype(np.int64)
