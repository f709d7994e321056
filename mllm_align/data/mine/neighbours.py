"""For every image the similar but different ones, in order of similarity: what Re-Align retrieves.

Re-Align (Xing et al., 2025, https://arxiv.org/abs/2502.13146) takes the nearest images by cosine similarity and goes
through them in order; it sets no bounds. `low` = -1 is that. `high` = 0.99 leaves out what an encoder takes for the
same picture (saved again, resized): no response could be right on one and wrong on the other. Encoders differ in how
close to one another they put different pictures, so look at what was found before you trust a bound.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from mllm_align.data.blocks import PROBLEM, BlockJob
from mllm_align.data.mine.band import SCHEMA, BandSearch
from mllm_align.data.mine.embeddings import Embeddings, block_path
from mllm_align.data.mine.faiss_settings import load_faiss
from mllm_align.data.mine.index import VectorIndex, build_index
from mllm_align.data.processes import processes

INDEX_FILE = "index.faiss"


class Similar(NamedTuple):
    """Neighbours of one image, most similar first: the rows that show them, and similarities."""

    rows: np.ndarray
    similarities: np.ndarray


class Neighbours:
    """What `similar_images` found.

    Args:
        embeddings: Among which.
        folder: Where it keeps its result.
    """

    def __init__(self, embeddings: Embeddings, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._embeddings = embeddings
        self._held: tuple[int, Mapping[int, dict[str, Any]]] = (-1, {})

    def of(self, row: int) -> Similar:
        """The neighbours of the image that a row of the input shows; none where it could not be used.

        One file is in memory: cheapest for rows in rising order.
        """
        shown = int(self._embeddings.shown_by[row])
        if shown < 0:
            return Similar(np.empty(0, np.int64), np.empty(0))
        number = shown // self._embeddings.block_size
        if self._held[0] != number:
            self._held = number, {record["row"]: record for record in self._block(number)}
        record = self._held[1][shown]
        return Similar(np.array(record["neighbours"], np.int64), np.array(record["similarities"], np.float64))

    def records(self) -> Iterator[dict[str, Any]]:
        """One for each distinct image, under the row that it stands under.

        row, neighbours, similarities, too_similar (how many others were above `high`, of those looked at), problem
        (why there is no neighbour).
        """
        for number in range(self._embeddings.num_blocks):
            yield from self._block(number)

    def summary(self) -> str:
        """How many images have neighbours, and how similar those are."""
        counts, nearest, problems = [], [], []
        for record in self.records():
            counts.append(len(record["neighbours"]))
            nearest += record["similarities"][:1]
            problems += [record[PROBLEM]] if record[PROBLEM] else []
        parts = [f"{len(counts)} images, {np.mean(counts) if counts else 0:.1f} neighbours each"]
        if nearest:
            low, middle, high = np.quantile(nearest, (0.05, 0.5, 0.95))
            parts.append(f"similarity of the nearest {middle:.3f} (5 to 95 %: {low:.3f} to {high:.3f})")
        if problems:
            parts.append(f"{len(problems)} have none, first: {problems[0]}")
        return "; ".join(parts)

    def _block(self, number: int) -> list[dict[str, Any]]:
        return pq.read_table(block_path(self.folder, number), schema=SCHEMA).to_pylist()


def similar_images(
    embeddings: Embeddings,
    folder: str | os.PathLike[str],
    *,
    k: int = 10,
    low: float = -1.0,
    high: float = 0.99,
    index: VectorIndex | str = "auto",
    progress: bool = True,
) -> Neighbours:
    """The k most similar images of each with low <= cosine <= high. A collective: every process must call it.

    Left out are the image itself, other copies of it, and images of rows with the same id or the same group. With an
    exact index they are what a loop over all pairs in float64 finds; another index is asked for at most 4096
    candidates.

    Args:
        embeddings: Of the images.
        folder: Where the result is kept; killed and started again, the job goes on.
        k: Neighbours of an image at the most.
        low: Least similarity.
        high: Greatest similarity.
        index: One that was built of these embeddings, or the kind to build; that one is kept in the folder.
        progress: Whether to show a bar.

    Raises:
        ValueError: If the band is empty, there is no image, the index holds other vectors, or the folder holds a job
            with other settings.
    """
    if not -1 <= low <= high or k < 1:
        raise ValueError(f"k = {k} neighbours within {low} <= similarity <= {high}: there can be none")
    if not len(embeddings):
        raise ValueError(f"{embeddings.folder} holds no image that could be used: {embeddings.summary()}")
    settings = {
        "job": "neighbours",
        "embeddings": embeddings.identity,
        "index": index if isinstance(index, str) else index.identity,
        "k": k,
        "low": low,
        "high": high,
    }
    job = BlockJob(folder, settings, embeddings.num_rows, SCHEMA, embeddings.block_size)
    built = kept_index(embeddings, Path(folder) / INDEX_FILE, index) if isinstance(index, str) else index
    if (len(built), built.dim) != (len(embeddings), embeddings.dim):
        raise ValueError(
            f"the index holds {len(built)} vectors of length {built.dim}, the embeddings are {len(embeddings)} of "
            f"length {embeddings.dim}: build it of these"
        )
    job.run(BandSearch(embeddings, built, k, low, high), "finding neighbours", progress=progress)
    return Neighbours(embeddings, folder)


def kept_index(vectors: Iterable[np.ndarray], path: Path, kind: str) -> VectorIndex:
    """Built by one process, read by all: a barrier would end the job where building takes longer than its patience.

    Args:
        vectors: As `build_index` reads them.
        path: Where it is kept, and taken from where it is there.
        kind: Of index.
    """
    state = processes()
    load_faiss()  # or every process says so
    if state.is_main_process and not path.exists():
        for draft in path.parent.glob(f".{path.name}.*"):  # of a process that was killed
            draft.unlink(missing_ok=True)
        build_index(vectors, kind).save(path)
    while not path.exists():
        time.sleep(0.2)
    return VectorIndex.load(path, str(state.device))
