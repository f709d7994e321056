"""How alike the two images of every pair are, to two encoders: the measurement behind MVC's filter.

Wu et al. (2025, https://arxiv.org/abs/2502.13928) keep a counterfactual pair if its images look alike to CLIP
(google/siglip-so400m-patch14-384, cosine above 0.7) and still differ in meaning to DINOv2 (facebook/dinov2-large,
cosine below 0.5). The cosines are measured once; thresholds are applied afterwards (`selection.hard`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from mllm_align.data.blocks import PROBLEM, BlockJob
from mllm_align.data.errors import DataError
from mllm_align.data.loading import undecoded
from mllm_align.data.mine.looks import look_of
from mllm_align.data.mine.pairs import input_digest, load_pair, pixel_digest, read_pair
from mllm_align.data.mine.problems import Problems, RowProblem
from mllm_align.data.mine.selection import Candidate

LOOK_ALIKE = "google/siglip-so400m-patch14-384"
MEANING = "facebook/dinov2-large"
DIGITS = 5

_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("image", pa.string()),
        ("contrast", pa.string()),
        ("mirror", pa.string()),
        ("look", pa.binary()),
        ("contrast_look", pa.binary()),
        ("similarity_visual", pa.float64()),
        ("similarity_semantic", pa.float64()),
    ]
)


class Embedder(Protocol):
    """Images to vectors; `identity` tells it apart from every other that would give other vectors."""

    identity: str

    def __call__(self, images: Sequence[Image.Image]) -> Any:
        """(B, d) of unit length, an array or a tensor on the host."""
        ...


def measure_pairs(
    rows: Any,
    look_alike: Embedder,
    meaning: Embedder,
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 16,
    block_size: int = 256,
    strict: bool = False,
    progress: bool = True,
    made_of: str = "",
) -> BlockJob:
    """Cosines of both encoders for every row, resumable. A collective: every process must call it.

    Args:
        rows: Canonical rows, one image and one contrast image each; anything with a length and integer indexing.
        look_alike: The encoder to which images must be similar.
        meaning: The one to which they must differ.
        folder: Where the job keeps what it has finished.
        batch_size: Pairs whose images are in memory at one time.
        block_size: Rows of a block.
        strict: Whether the first row that cannot be used is an error.
        progress: Whether to show a bar.
        made_of: What the rows are called, for messages.

    Returns:
        The finished job, for `read_candidates`. Its records hold `similarity_visual` (look_alike) and
        `similarity_semantic` (meaning), the digests of the pixels of both images and of the own one's mirror image,
        what both look like (`looks`), or a problem.

    Raises:
        DataError: If `strict`, for the first row that cannot be used.
        ValueError: If the folder holds a job on other rows or with other encoders.
    """
    rows = undecoded(rows)
    settings = {
        "look_alike": look_alike.identity,
        "meaning": meaning.identity,
        "input": input_digest(rows),
        "columns": _SCHEMA.names,
    }
    job = BlockJob(folder, settings, len(rows), _SCHEMA, block_size, made_of=made_of)
    measure = _PairMeter(rows, look_alike, meaning, batch_size, strict)
    job.run(measure, "comparing images", progress=progress)
    return job


class _PairMeter:
    """The records of a block; an image that several of its pairs show is embedded once."""

    def __init__(self, rows: Any, look_alike: Embedder, meaning: Embedder, batch_size: int, strict: bool) -> None:
        self.rows, self.batch_size, self.strict = rows, batch_size, strict
        self.encoders = (look_alike, meaning)

    def __call__(self, numbers: range) -> list[dict[str, Any]]:
        vectors: dict[str, tuple[np.ndarray, ...]] = {}
        refused: dict[str, str] = {}
        records: list[dict[str, Any]] = []
        for start in range(0, len(numbers), self.batch_size):
            images: dict[str, Image.Image] = {}
            records += [self._read(number, images) for number in numbers[start : start + self.batch_size]]
            new = {key: image for key, image in images.items() if key not in vectors and key not in refused}
            self._embed(new, vectors, refused)
        for record in records:
            if record.get(PROBLEM) is None:
                record |= _compared(record, vectors, refused)
        return records

    def _read(self, number: int, images: dict[str, Image.Image]) -> dict[str, Any]:
        try:
            first, second = load_pair(read_pair(self.rows[number], number))
        except RowProblem as problem:
            if self.strict:
                raise
            return {"row": number, PROBLEM: str(problem)}
        digests = pixel_digest(first), pixel_digest(second)
        images |= dict(zip(digests, (first, second), strict=True))
        mirror = pixel_digest(ImageOps.mirror(first))
        looks = {"look": look_of(first), "contrast_look": look_of(second)}
        return {"row": number, "image": digests[0], "contrast": digests[1], "mirror": mirror, **looks}

    def _embed(
        self, images: Mapping[str, Image.Image], vectors: dict[str, tuple[np.ndarray, ...]], refused: dict[str, str]
    ) -> None:
        """Adds to `vectors`; an image that a processor refuses, to `refused`, and spoils no other."""
        if not images:
            return
        try:
            given = [encoder(list(images.values())) for encoder in self.encoders]
        except (ValueError, ArithmeticError, MemoryError) as error:
            if len(images) == 1:
                refused |= dict.fromkeys(images, str(error))
                return
            for key, image in images.items():
                self._embed({key: image}, vectors, refused)
            return
        found = [np.asarray(array).astype(np.float64) for array in given]
        for array in found:
            if array.ndim != 2 or len(array) != len(images):
                raise ValueError(f"an embedder gave {array.shape} for {len(images)} images; (images, d) is needed")
            array /= np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)
        vectors |= {key: tuple(array[place] for array in found) for place, key in enumerate(images)}


def _compared(
    record: Mapping[str, Any], vectors: Mapping[str, tuple[np.ndarray, ...]], refused: Mapping[str, str]
) -> dict[str, Any]:
    """Both cosines of a pair, or its problem."""
    keys = record["image"], record["contrast"]
    for key in keys:
        if key in refused:
            return {PROBLEM: f"refused image: row {record['row']}, an encoder cannot read an image: {refused[key]}"}
    visual, semantic = (
        round(float(first @ second), DIGITS) for first, second in zip(*map(vectors.__getitem__, keys), strict=True)
    )
    if np.isnan(visual + semantic):
        return {PROBLEM: f"no vector: row {record['row']}, an encoder gives nothing finite for an image"}
    return {"similarity_visual": visual, "similarity_semantic": semantic}


def read_candidates(
    rows: Any, job: BlockJob, *, category: str | None = None, strict: bool = False
) -> tuple[list[Candidate], Problems]:
    """What a finished job measured, with the texts of the rows; images are not read again.

    Args:
        rows: As they were given to `measure_pairs`.
        job: What it returned.
        category: The column that holds a row's category.
        strict: Whether a row that cannot be used is an error.

    Returns:
        The usable pairs in the order of the rows, and the problems of the others. Of rows with one id the first is
        kept, and the others are problems.

    Raises:
        DataError: If `strict`, for the first row that cannot be used.
    """
    rows, problems, ids = undecoded(rows), Problems(), set()
    found: list[Candidate] = []
    for record in job.records():
        if record[PROBLEM] is None:
            pair = read_pair(rows[record["row"]], record["row"], category)
            if pair.id not in ids:
                ids.add(pair.id)
                found.append(Candidate.of(pair, record))
                continue
            record[PROBLEM] = f"duplicate id: row {record['row']} has the id {pair.id!r} of an earlier row"
        if strict:
            raise DataError(record[PROBLEM])
        problems.add(record[PROBLEM])
    return found, problems
