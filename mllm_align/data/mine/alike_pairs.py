"""All pairs of vectors with a cosine above a bound, a tile of vectors against another at a time.

Products of float32 propose, and what they propose is settled in float64 (`exact_cosines`): a pair is found, or is not,
by its two vectors alone, whatever the tiles, the device and the number of threads. In memory are two tiles and the
products of a strip of one with the other, never N x N numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch

from mllm_align.data.mine.sketch import SAMPLED, Sketch
from mllm_align.data.mine.tiles import Tiles

# More than float32, TF32 or vectors that were kept as float16 take a cosine off: 1e-3 at the most.
MARGIN = 2e-3
STRIP = 2**23  # products in memory
SETTLED = 2**16  # pairs that are handed on together
AT_ONCE = 512  # of them whose vectors are in memory as float64


class Found(NamedTuple):
    """Pairs of vectors by number, first < second, and their cosines, all (n,)."""

    first: np.ndarray
    second: np.ndarray
    cosine: np.ndarray


class Search(Protocol):
    """Finds pairs by units of work, which any process may do."""

    identity: str

    def __len__(self) -> int:
        """How many units there are."""
        ...

    def __call__(self, unit: int) -> Iterator[Found]:
        """The pairs of one unit."""
        ...


class TilePairs:
    """The exact search: a unit is a pair of tiles, the second not before the first.

    Args:
        tiles: The vectors.
        above: Cosines must be above, exclusive.
        device: Where products are taken.
        sketch: Whether parts of the vectors may rule pairs out (`Sketch`), which changes the time alone.
    """

    identity = "exact"

    def __init__(self, tiles: Tiles, above: float, device: torch.device | str = "cpu", *, sketch: bool = True) -> None:
        self.tiles, self.above, self.device, self.sketch = tiles, above, device, sketch
        self._sketch: Sketch | None = None
        self._held: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        """T (T + 1) / 2 of T tiles."""
        return len(self.tiles) * (len(self.tiles) + 1) // 2

    def __call__(self, unit: int) -> Iterator[Found]:
        """The pairs of one pair of tiles."""
        one, other = tile_pair(unit)
        left, right = self.tiles[one], self.tiles[other]
        self._held = {number: self._rough(number) for number in (one, other)}
        offset = other * self.tiles.size
        step = max(1, STRIP // len(right))
        for top in range(0, len(left), step):
            skipped = top if one == other else 0  # of the diagonal tile the upper triangle
            products = self._held[one][top : top + step] @ self._held[other][skipped:].T
            rows, columns = _places(products, self.above - MARGIN)
            first, second = rows + top, columns + skipped
            if one == other:
                first, second = first[first < second], second[first < second]
            for start in range(0, len(first), SETTLED):
                part = slice(start, start + SETTLED)
                cosine = exact_cosines(left, first[part], right, second[part])
                kept = cosine > self.above
                places = first[part][kept] + one * self.tiles.size, second[part][kept] + offset
                yield Found(*places, cosine[kept])

    def _rough(self, number: int) -> torch.Tensor:
        if number in self._held:
            return self._held[number]
        if self.sketch and self._sketch is None:
            self._sketch = Sketch(self.tiles.sample(SAMPLED), self.above - MARGIN)
        vectors = self.tiles[number]
        rough = self._sketch(vectors) if self._sketch is not None else torch.from_numpy(vectors)
        return rough.to(self.device)


def tile_pair(unit: int) -> tuple[int, int]:
    """The pair of tiles of a unit: (0, 0), (0, 1), (1, 1), (0, 2), ...: more tiles add units, and change none."""
    second = int((math.isqrt(8 * unit + 1) - 1) // 2)
    return unit - second * (second + 1) // 2, second


def exact_cosines(left: np.ndarray, first: np.ndarray, right: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) float64 products of `left[first]` and `right[second]`, (N, d) of length 1; the same whatever else is asked.

    Args:
        left: (N, d) float32 of length 1.
        first: (n,) places in it.
        right: (M, d) float32 of length 1.
        second: (n,) places in it.
    """
    found = np.empty(len(first), np.float64)
    for start in range(0, len(first), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        found[part] = (left[first[part]].astype(np.float64) * right[second[part]]).sum(1)
    return found


def _places(products: torch.Tensor, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of what is above, by rows; most rows have nothing, which their greatest number tells."""
    rows = (products.amax(1) > least).nonzero()[:, 0]
    within, columns = (products[rows] > least).nonzero().cpu().numpy().T
    return rows.cpu().numpy()[within], columns
