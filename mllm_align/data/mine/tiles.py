"""The vectors of some images of an `Embeddings`, a tile of them at a time: what is in memory, whatever N is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import numpy as np

from mllm_align.data.mine.drawing import Sample
from mllm_align.data.mine.embeddings import Embeddings

HELD = 2  # tiles in memory at the least: those of the pair that is being compared
KEPT_BYTES = 400 * 2**20  # of further tiles, so that those of some 100,000 images are read once


class Tiles:
    """Vectors 0 to N - 1, those of the images that stand under `rows`.

    Args:
        embeddings: Of the images.
        rows: (N,) int64, rising, among `embeddings.rows`.
        size: Vectors of a tile.
    """

    def __init__(self, embeddings: Embeddings, rows: np.ndarray, size: int) -> None:
        if size < 1:
            raise ValueError(f"a block must have at least one image, not {size}")
        self.embeddings, self.rows, self.size = embeddings, rows, size
        self._held: OrderedDict[int, np.ndarray] = OrderedDict()
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """How many tiles there are."""
        return -(-len(self.rows) // self.size)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Arrays (n, d) float32 of unit vectors, in order."""
        for number in range(len(self)):
            yield self[number]

    def __getitem__(self, number: int) -> np.ndarray:
        """Vectors `number * size` and those that follow: (n, d) float32, of length 1."""
        if number in self._kept:
            return self._kept[number]
        if number not in self._held:
            tile = self._read(number)
            # Searches go through all tiles in turn: the last ones used would be the last ones wanted again.
            if tile.nbytes * (len(self._kept) + 1) <= KEPT_BYTES:
                self._kept[number] = tile
                return tile
            while len(self._held) >= HELD:
                self._held.popitem(last=False)
            self._held[number] = tile
        self._held.move_to_end(number)
        return self._held[number]

    def sample(self, count: int, seed: int = 0) -> np.ndarray:
        """(n, d) float32: that many vectors, or all, drawn by the hash of their number."""
        drawn = Sample((self._read(number) for number in range(len(self))), count, seed).first(count)
        return drawn.reshape(-1, self.embeddings.dim)

    def _read(self, number: int) -> np.ndarray:
        rows = self.rows[number * self.size : (number + 1) * self.size]
        found = np.empty((len(rows), self.embeddings.dim), np.float32)
        blocks = rows // self.embeddings.block_size
        for block in np.unique(blocks):
            own, vectors = self.embeddings.block(int(block))
            wanted = np.flatnonzero(blocks == block)
            found[wanted] = vectors[np.searchsorted(own, rows[wanted])]
        return found
