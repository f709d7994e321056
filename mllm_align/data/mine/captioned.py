"""Rows of a picture and texts that are true of it, as two sets without repetition: what is mined, and among what."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from mllm_align.data.blocks import BlockJob
from mllm_align.data.errors import DataError
from mllm_align.data.images import image_key
from mllm_align.data.mine.embed import embed_images
from mllm_align.data.mine.problems import RowProblem, image_path
from mllm_align.data.mine.vector_files import digest_of
from mllm_align.data.schema import row_name

TEXT_COLUMNS = ("caption", "captions", "chosen")  # in the order in which "auto" tries them
_TEXTS_AT_ONCE = 4096


class Embedder(Protocol):
    """What embeds both sides: a `DualEmbedder`, or anything that does the same."""

    name: str
    identity: str
    dim: int
    batch_size: int

    def prepare(self, images: Sequence[Any]) -> Any:
        """What `vectors` reads of images."""
        ...

    def vectors(self, prepared: Any) -> np.ndarray:
        """(N, d) float32 of length 1."""
        ...

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, d) float32 of length 1."""
        ...


class Pictures(NamedTuple):
    """The distinct pictures of rows.

    Attributes:
        of_row: (rows,) int64, the picture of each; -1 where it could not be used.
        keys: Of each picture what tells it from others, wherever it lies.
        vectors: (P, d) float32 of length 1.
        identity: Equal for equal vectors of equal pictures.
        problems: Row -> `kind: message`.
    """

    of_row: np.ndarray
    keys: Sequence[str]
    vectors: np.ndarray
    identity: str
    problems: Mapping[int, str]


class Captions(NamedTuple):
    """The distinct texts of rows, told apart as strings.

    Attributes:
        of_row: The numbers of each row's texts, in their order; none where it could not be used.
        further: Of each row the strings of its column "positives", true of the picture too.
        texts: T strings.
        spoken: The number of every text of all rows, in order, repetitions too; -1 for one that is left out.
        problems: Row -> `kind: message`.
    """

    of_row: Sequence[tuple[int, ...]]
    further: Sequence[tuple[str, ...]]
    texts: Sequence[str]
    spoken: Sequence[int]
    problems: Mapping[int, str]


def embedded_pictures(rows: Any, embedder: Any, folder: Path, column: str, **settings: Any) -> Pictures:
    """Pictures of rows by an encoder, those of equal pixels being one; resumes in its folder. A collective.

    Raises:
        DataError: As `embed_images`.
    """
    found = embed_images(rows, embedder, folder, column=column, **settings)
    of_row = np.where(found.shown_by < 0, -1, np.searchsorted(found.rows, found.shown_by))
    digests = found.column("digest")
    keys = [digests[row].hex() for row in found.rows.tolist()]
    problems = {row: str(RowProblem("unusable image", text)) for row, text in found.problems.items()}
    return Pictures(of_row, keys, found.array(), found.identity, problems)


def given_pictures(rows: Any, vectors: np.ndarray, column: str) -> Pictures:
    """Pictures of rows, those of equal bytes being one, with vectors that were given, one per row.

    Raises:
        DataError: If there are not as many.
    """
    if len(vectors) != len(rows):
        raise DataError(f"there are {len(vectors)} image vectors for {len(rows)} rows: one per row is wanted")
    first: dict[str, int] = {}
    of_row = np.full(len(rows), -1, np.int64)
    places, problems = [], {}
    for number in range(len(rows)):
        try:
            key = _content(rows[number].get(column), row_name(rows[number], number), column)
        except RowProblem as problem:
            problems[number] = str(problem)
            continue
        if key not in first:
            first[key] = len(first)
            places.append(number)
        of_row[number] = first[key]
    own = vectors[np.array(places, np.int64)]
    return Pictures(of_row, list(first), own, digest_of(own), problems)


def read_captions(rows: Any, column: str, pictures: Pictures) -> Captions:
    """The texts of every row: a string, or a list of strings. Those of pictures that cannot be used are left out."""
    numbers: dict[str, int] = {}
    of_row: list[tuple[int, ...]] = []
    further: list[tuple[str, ...]] = []
    spoken: list[int] = []
    problems: dict[int, str] = {}
    for place in range(len(rows)):
        row = rows[place]
        texts = texts_in(row.get(column))
        if pictures.of_row[place] < 0:
            own = tuple([-1] * len(texts or ()))
        else:
            own = tuple(numbers.setdefault(text, len(numbers)) for text in texts or ())
        if not own:
            what = "no text" if texts is not None else "neither a text nor a list of texts"
            problems[place] = str(RowProblem("missing text", f"{row_name(row, place)}: {what} in column {column!r}"))
        spoken += own
        of_row.append(tuple(dict.fromkeys(number for number in own if number >= 0)))
        further.append(texts_in(row.get("positives")) or ())
    return Captions(of_row, further, list(numbers), spoken, problems)


def embedded_texts(texts: Sequence[str], embedder: Embedder, folder: Path, **settings: Any) -> np.ndarray:
    """(T, d) float32 vectors of texts by an encoder; resumes in its folder. A collective."""
    digest = hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    schema = pa.schema([("text", pa.int64()), ("embedding", pa.list_(pa.float32(), embedder.dim))])
    about = {"job": "embed texts", "embedder": embedder.identity, "input": digest}
    job = BlockJob(folder, about, len(texts), schema, _TEXTS_AT_ONCE)

    def work(numbers: range) -> list[dict[str, Any]]:
        vectors = embedder.texts([texts[number] for number in numbers])
        return [{"text": number, "embedding": own} for number, own in zip(numbers, vectors, strict=True)]

    job.run(work, "embedding texts", **settings)
    parts = [
        table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, embedder.dim) for table in job.tables()
    ]
    return np.concatenate([*parts, np.empty((0, embedder.dim), np.float32)])


def given_texts(captions: Captions, vectors: np.ndarray) -> np.ndarray:
    """(T, d) vectors of the distinct texts, out of those that were given, one per text of each row in order.

    Raises:
        DataError: If there are not as many.
    """
    if len(vectors) != len(captions.spoken):
        raise DataError(
            f"there are {len(vectors)} text vectors for {len(captions.spoken)} texts of {len(captions.of_row)} rows: "
            "one per text is wanted, in the order of the rows"
        )
    first: dict[int, int] = {}
    for place, number in enumerate(captions.spoken):
        first.setdefault(number, place)
    return vectors[np.array([first[number] for number in range(len(captions.texts))], np.int64)]


def texts_in(value: Any) -> tuple[str, ...] | None:
    """The strings of a column that holds one or a list of them, without blank ones; None where it holds others."""
    values = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(values, list | tuple) or not all(isinstance(each, str) for each in values):
        return None
    return tuple(each for each in values if each.strip())


def _content(value: Any, where: str, column: str) -> str:
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if value is None or isinstance(value, list | tuple):
        what = "no image" if not value else f"{len(value)} images"
        raise RowProblem("unusable image", f"{where}: {what} in column {column!r}, where one is wanted")
    path = image_path(value)
    try:
        key = image_key(value, where)
        # As of the encoded bytes, so that a picture in a file is the one that another row holds itself.
        return key if path is None else image_key(path.read_bytes())
    except (DataError, OSError) as error:
        raise RowProblem("unusable image", str(error)) from None
