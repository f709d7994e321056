"""Similar pairs by an index of FAISS: most of them, for more images than all products could be taken of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mllm_align.data.mine.alike_pairs import Found
from mllm_align.data.mine.index import VectorIndex
from mllm_align.data.mine.tiles import Tiles

AT_FIRST, FARTHEST = 32, 4096  # candidates of an image
ASKED = 1024  # images at a time
SAMPLED = 500  # images that recall is estimated by


class IndexPairs:
    """A search by an index: a unit is a tile of vectors, each asked for those that are like it.

    A pair may come from both of its images. Cosines are taken in float64 of the vectors themselves, so what is found
    has them right; what is not found, `estimated_recall` counts.

    Args:
        tiles: The vectors.
        above: Cosines must be above, exclusive.
        index: Of these vectors in this order.
    """

    def __init__(self, tiles: Tiles, above: float, index: VectorIndex) -> None:
        self.tiles, self.above, self.index = tiles, above, index
        self.identity = index.identity

    def __len__(self) -> int:
        """As many as tiles."""
        return len(self.tiles)

    def __call__(self, unit: int) -> Iterator[Found]:
        """The pairs of the vectors of one tile."""
        vectors = self.tiles[unit]
        for start in range(0, len(vectors), ASKED):
            own = np.arange(start, min(start + ASKED, len(vectors)))
            yield from self.of(own + unit * self.tiles.size, vectors[own])

    def of(self, numbers: np.ndarray, vectors: np.ndarray) -> Iterator[Found]:
        """The pairs of some vectors: (n,) numbers and (n, d)."""
        fetch, limit = AT_FIRST, min(FARTHEST, len(self.index))
        while len(numbers):
            fetch = min(fetch, limit)
            found, similarities = self.index.search(vectors, fetch)
            more = (similarities[:, -1] > self.above) & (fetch < limit)
            fits = (similarities > self.above) & (found != numbers[:, None]) & ~more[:, None]
            asked, place = np.nonzero(fits)
            pair = np.sort(np.stack([numbers[asked], found[asked, place]]), axis=0)
            yield Found(pair[0], pair[1], similarities[asked, place])
            numbers, vectors, fetch = numbers[more], vectors[more], 4 * fetch


def estimated_recall(search: IndexPairs, seed: int = 0) -> dict[str, Any]:
    """Which part of the pairs an index finds, from either side, for some images that are compared with all others.

    Returns:
        images: how many were drawn; pairs: of these images, by all products; found: how many of them the index finds;
        recall: found / pairs, None where there are no pairs.
    """
    tiles = search.tiles
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.choice(len(tiles.rows), min(SAMPLED, len(tiles.rows)), replace=False))
    vectors = _vectors(tiles, drawn)
    wanted: list[np.ndarray] = []
    for number in range(len(tiles)):
        own, other = np.nonzero(vectors.astype(np.float64) @ tiles[number].T > search.above)
        wanted.append(np.stack([drawn[own], other + number * tiles.size]))
    pairs = np.concatenate(wanted, axis=1)
    pairs = np.unique(np.sort(pairs[:, pairs[0] != pairs[1]], axis=0), axis=1)
    sides = np.unique(pairs)
    known = {
        pair
        for start in range(0, len(sides), ASKED)
        for found in search.of(sides[start : start + ASKED], _vectors(tiles, sides[start : start + ASKED]))
        for pair in zip(found.first.tolist(), found.second.tolist(), strict=True)
    }
    found = sum(pair in known for pair in zip(*pairs.tolist(), strict=True))
    total = pairs.shape[1]
    return {"images": len(drawn), "pairs": total, "found": found, "recall": found / total if total else None}


def _vectors(tiles: Tiles, numbers: np.ndarray) -> np.ndarray:
    """(n, d) of rising numbers."""
    places = numbers // tiles.size
    parts = [tiles[int(tile)][numbers[places == tile] - tile * tiles.size] for tile in np.unique(places)]
    return np.concatenate([np.empty((0, tiles.embeddings.dim), np.float32), *parts])
