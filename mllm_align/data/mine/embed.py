"""Images to vectors, in a folder of Parquet files that a kill does not spoil.

embedder = ImageEmbedder("openai/clip-vit-large-patch14")
found = embed_images(load_rows("pairs.jsonl"), embedder, "work/embeddings")  # or a folder of images
found.array()  # (len(found), d)
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import datasets
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from mllm_align.data.blocks import PROBLEM, BlockJob
from mllm_align.data.errors import DataError
from mllm_align.data.files import as_text
from mllm_align.data.images import load_image
from mllm_align.data.mine.embeddings import VECTOR, Embeddings, block_path, embedding_schema
from mllm_align.data.mine.encoder import ImageEmbedder, Inputs
from mllm_align.data.mine.listing import Listing, list_images
from mllm_align.data.processes import processes

__all__ = ["Embeddings", "ImageEmbedder", "embed_images"]

logger = logging.getLogger(__name__)

PRECISIONS = ("float32", "float16")

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


def embed_images(
    images: str | os.PathLike[str] | Sequence[Mapping[str, Any]] | datasets.Dataset,
    embedder: ImageEmbedder,
    folder: str | os.PathLike[str],
    *,
    column: str = "image",
    group: str | None = None,
    precision: str = "float32",
    block_size: int = 1024,
    workers: int = 4,
    strict: bool = False,
    progress: bool = True,
    made_of: str = "",
) -> Embeddings:
    """Embeds every image of a folder, or of a column of rows. A collective: every process must call it.

    A file that several rows name is embedded once. An image that cannot be used is a problem of its row, counted in
    a warning. In memory are a block of vectors and some batches of images.

    Started again, it looks at size and time of change of every file, as `stat` tells them: a block with one that was
    replaced is read again, and what shows other pixels is embedded anew. That costs microseconds a file on a disk of
    one's own, where a digest would cost all of its bytes. What rows hold themselves is not looked at again, and what
    is no longer there keeps its vector.

    Args:
        images: A folder, searched below too; or rows, a dataset or a list of mappings.
        embedder: What embeds.
        folder: Where the result is kept; killed and started again, the job goes on.
        column: The column of the rows that holds the image, or a list of one.
        group: A column; images of rows with the same value are not taken for neighbours of one another.
        precision: "float32", or "float16" for half the disk.
        block_size: Rows of one file.
        workers: Threads that read and prepare images ahead of the model.
        strict: Whether an image that cannot be used is an error.
        progress: Whether to show a bar.
        made_of: What the rows are called, for messages; a folder's own path by default.

    Raises:
        DataError: If there is nothing to embed; under `strict`, if an image cannot be used.
        ValueError: If the folder holds a job with other settings.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    listing = list_images(images, column, group)
    settings = {
        "job": "embed",
        "embedder": embedder.identity,
        "dim": embedder.dim,
        "images": listing.digest,
        "column": column,
        "group": group,
        "precision": precision,
    }
    schema = embedding_schema(embedder.dim, precision)
    made_of = made_of or (os.fspath(images) if isinstance(images, str | os.PathLike) else "")
    job = BlockJob(folder, settings, len(listing), schema, block_size, made_of=made_of)
    number = np.float16 if precision == "float16" else np.float32
    work = _Work(listing, embedder, number, max(1, workers), strict, job.folder, block_size)
    replaced = _Replaced(listing)
    job.run(work, "embedding images", progress=progress, outdated=replaced)
    replaced.report()
    found = Embeddings(folder)
    if processes().is_main_process:
        _report(listing, found)
    if strict and found.problems:
        raise DataError(found.summary())
    return found


def _report(listing: Listing, found: Embeddings) -> None:
    if found.problems:
        logger.warning(found.summary())
    if listing.ignored:
        logger.warning("%d files of the folder are no images by their suffix and were ignored", listing.ignored)
    repeated = listing.repeated_ids
    if repeated:
        logger.warning(
            "%d ids stand for more than one image, such as %r: they are taken for pictures of the same thing, never "
            "for neighbours",
            len(repeated),
            repeated[0],
        )


class _Replaced:
    """Whether files were written again since the vectors of a block were made; counts them."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self.count, self.example = 0, ""

    def __call__(self, block: Path) -> bool:
        columns = pq.read_table(block, columns=["row", "same_as", "file_size", "file_time"]).to_pydict()
        before = self.count
        for row, same_as, *known in zip(*columns.values(), strict=True):
            now = self.listing.state(row) if same_as is None else (None, None)
            # A file that is gone was not replaced: a disk may only not be mounted.
            if now != (None, None) and now != tuple(known):
                self.count, self.example = self.count + 1, self.example or self.listing.keys[int(row)]
        return self.count > before

    def report(self) -> None:
        if self.count:
            logger.warning(
                "%d image files were written again after they had been read, such as %s: those that show something "
                "else were embedded anew",
                self.count,
                as_text(self.example),
            )


class _Batch(NamedTuple):
    """Records of some rows; those with an image that was read, and it as the model reads it."""

    records: list[dict[str, Any]]
    usable: list[dict[str, Any]]
    inputs: list[Inputs]


class _Work(NamedTuple):
    """What a block of rows comes to."""

    listing: Listing
    embedder: ImageEmbedder
    number: type[np.floating[Any]]
    workers: int
    strict: bool
    folder: Path
    block_size: int

    def __call__(self, rows: range) -> list[dict[str, Any]]:
        size = self.embedder.batch_size
        before = self._before(rows)
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        records: list[dict[str, Any]] = []
        for batch in _ahead(lambda part: self._read(part, before), parts, self.workers):
            if batch.usable:
                vectors = self.embedder.vectors(batch.inputs)
                for record, vector in zip(batch.usable, vectors, strict=True):
                    if np.isfinite(vector).all():
                        record[VECTOR] = vector.astype(self.number)
                    else:
                        self._refuse(record, DataError(f"row {record['row']}: the model gives no finite vector"))
            records += batch.records
        return records

    def _before(self, rows: range) -> dict[bytes, np.ndarray]:
        """Vectors of a block that was finished, by the pixels that they are of: a copied file has its old one."""
        path = block_path(self.folder, rows.start // self.block_size)
        if not path.exists():
            return {}
        table = pq.read_table(path, columns=["digest", VECTOR])
        table = table.filter(table[VECTOR].is_valid())
        return dict(zip(table["digest"].to_pylist(), table[VECTOR].to_numpy(), strict=True))

    def _read(self, rows: range, before: Mapping[bytes, np.ndarray]) -> _Batch:
        records, usable, pictures = [], [], []
        for row in rows:
            record = self._record(row)
            records.append(record)
            if self.listing.same_as[row] != row:
                record["same_as"] = self.listing.same_as[row]
                continue
            record["file_size"], record["file_time"] = self.listing.state(row)  # first: it may change while it is read
            try:
                picture = load_image(self.listing.image(row), f"row {row}")
            except DataError as error:
                self._refuse(record, error)
                continue
            record["digest"] = _digest(picture)
            if record["digest"] in before:
                record[VECTOR] = before[record["digest"]]
                continue
            usable.append(record)
            pictures.append(picture)
        return _Batch(records, *self._prepared(usable, pictures))

    def _prepared(
        self, records: list[dict[str, Any]], pictures: list[Image.Image]
    ) -> tuple[list[dict[str, Any]], list[Inputs]]:
        """What the model reads; an image that the processor refuses spoils no other."""
        try:
            return records, self.embedder.prepare(pictures)
        except (ValueError, ArithmeticError, MemoryError):
            good = [place for place, picture in enumerate(pictures) if self._accepts(records[place], picture)]
            return [records[place] for place in good], self.embedder.prepare([pictures[place] for place in good])

    def _accepts(self, record: dict[str, Any], picture: Image.Image) -> bool:
        try:
            self.embedder.prepare([picture])
        except (ValueError, ArithmeticError, MemoryError) as error:
            size = f"{picture.width} x {picture.height}"
            self._refuse(record, DataError(f"row {record['row']}: the processor refuses the {size} image: {error}"))
            return False
        return True

    def _record(self, row: int) -> dict[str, Any]:
        listing = self.listing
        own = {"id": listing.ids[row], "key": listing.keys[row], "group": listing.groups[row]}
        return {"row": row, **{name: value if value is None else as_text(value) for name, value in own.items()}}

    def _refuse(self, record: dict[str, Any], error: DataError) -> None:
        if self.strict:
            raise error
        record["digest"] = None
        record[PROBLEM] = as_text(str(error))


def _ahead(work: Callable[[_Item], _Made], items: Iterable[_Item], workers: int) -> Iterator[_Made]:
    """The results in order, with as many more in the making as there are threads."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[_Made]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _digest(picture: Image.Image) -> bytes:
    return hashlib.blake2b(f"{picture.size}".encode() + picture.tobytes(), digest_size=16).digest()
