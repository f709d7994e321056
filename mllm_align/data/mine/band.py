"""The neighbours of a block of images within a band of similarity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from mllm_align.data.blocks import PROBLEM
from mllm_align.data.mine.embeddings import Embeddings
from mllm_align.data.mine.index import VectorIndex

MORE = 16  # candidates looked at beyond k, at first
HELD = 2**22  # candidates in memory
FARTHEST = 4096  # candidates that an index that finds most neighbours is asked for
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("neighbours", pa.list_(pa.int64())),
        ("similarities", pa.list_(pa.float64())),
        ("too_similar", pa.int64()),
        (PROBLEM, pa.string()),
    ]
)


class BandSearch:
    """From a block of rows to records of the neighbours of its images; what is left out is said in `similar_images`.

    Args:
        embeddings: Among which.
        index: Of them.
        k: Neighbours of an image at the most.
        low: Least similarity.
        high: Greatest similarity.
    """

    def __init__(self, embeddings: Embeddings, index: VectorIndex, k: int, low: float, high: float) -> None:
        self.embeddings, self.index, self.k = embeddings, index, k
        # Rounding takes a cosine past 1.
        self.low, self.high = low if low > -1 else -np.inf, high if high < 1 else np.inf
        self.kin = [labels[embeddings.rows] for labels in map(embeddings.labels, ("id", "group"))]
        self.limit = len(index) if index.kind == "exact" else min(FARTHEST, len(index))

    def __call__(self, rows: range) -> list[dict[str, Any]]:
        """One record for each distinct image that stands in these rows."""
        shown, vectors = self.embeddings.block(rows.start // self.embeddings.block_size)
        own = np.searchsorted(self.embeddings.rows, shown)
        records: list[dict[str, Any]] = []
        pending, fetch = np.arange(len(shown)), self.k + MORE
        while len(pending):
            fetch = min(fetch, self.limit)
            left = []
            for start in range(0, len(pending), size := max(1, HELD // fetch)):
                part = pending[start : start + size]
                found, done = self._search(vectors[part], own[part], fetch)
                records += found
                left.append(part[~done])
            pending, fetch = np.concatenate(left), 4 * fetch
        return sorted(records, key=lambda record: record["row"])

    def _search(self, vectors: np.ndarray, own: np.ndarray, fetch: int) -> tuple[list[dict[str, Any]], np.ndarray]:
        """The records of those queries for which that many candidates are enough, and which these are."""
        numbers, similarities = self.index.search(vectors, fetch)
        others = (numbers >= 0) & (numbers != own[:, None])
        fits = others & (similarities >= self.low) & (similarities <= self.high)
        for labels in self.kin:
            mine = labels[own][:, None]
            fits &= (mine < 0) | (labels[numbers] != mine)
        ended = (similarities[:, -1] < self.low) | (numbers[:, -1] < 0) | (fetch == self.limit)
        done = (fits.sum(1) >= self.k) | ended
        found = []
        for place in np.flatnonzero(done):
            looked = others[place]
            row = int(self.embeddings.rows[own[place]])
            found.append(self._record(row, numbers[place][looked], similarities[place][looked], fits[place][looked]))
        return found, done

    def _record(self, row: int, numbers: np.ndarray, similarities: np.ndarray, fits: np.ndarray) -> dict[str, Any]:
        chosen = np.flatnonzero(fits)[: self.k]
        too_similar = int((similarities > self.high).sum())
        problem = None
        if not len(chosen):
            below = similarities[similarities < self.low]
            nearest = f", the next is at {below[0]:.3f}" if len(below) else ""
            problem = f"row {row}: no image within {self.low} to {self.high}: {too_similar} are above{nearest}"
        return {
            "row": row,
            "neighbours": self.embeddings.rows[numbers[chosen]],
            "similarities": similarities[chosen],
            "too_similar": too_similar,
            PROBLEM: problem,
        }
