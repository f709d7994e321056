"""The best pairs of every image while pairs stream by: what bounds memory, and how often one image is shown.

A pair stays if it is among the k best of both of its images. What is dropped on the way is among the k best of
neither, so the order in which pairs come, and how they are cut into blocks, changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

PENDING = 2**20  # pairs that may wait to be sorted out


class Pairs(NamedTuple):
    """Pairs of images, first < second, and the cosines of both encoders, all (n,)."""

    first: np.ndarray
    second: np.ndarray
    visual: np.ndarray
    semantic: np.ndarray

    @classmethod
    def none(cls) -> Pairs:
        """No pairs."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0))

    def where(self, chosen: np.ndarray) -> Pairs:
        """Some of them: a mask or places."""
        return Pairs(*(column[chosen] for column in self))

    def ranked(self) -> Pairs:
        """The largest gap between the cosines first; equal ones by their images."""
        return self.where(np.lexsort((self.second, self.first, self.semantic - self.visual)))


class BestPairs:
    """Keeps those that may be among the k best of an image, by the gap between both cosines.

    Args:
        k: Pairs of an image.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self._parts = [Pairs.none()]
        self._held, self._settled = 0, 0

    def add(self, pairs: Pairs) -> None:
        """Some more."""
        self._parts.append(pairs)
        self._held += len(pairs.first)
        if self._held - self._settled > max(PENDING, self._settled):
            self.candidates()

    def candidates(self) -> Pairs:
        """Those among the k best of either image: all that a further pair could leave among the best of both."""
        pairs = self._joined()
        one, other = _places_of(pairs)
        return self._keep(pairs.where((one < self.k) | (other < self.k)))

    def best(self) -> Pairs:
        """Those among the k best of both images, the largest gap first."""
        pairs = self.candidates()
        one, other = _places_of(pairs)
        return pairs.where((one < self.k) & (other < self.k)).ranked()

    def _joined(self) -> Pairs:
        pairs = Pairs(*map(np.concatenate, zip(*self._parts, strict=True)))
        # An index finds a pair from either side.
        _, once = np.unique(pairs.first << 32 | pairs.second, return_index=True)
        return pairs if len(once) == len(pairs.first) else pairs.where(once)

    def _keep(self, pairs: Pairs) -> Pairs:
        self._parts = [pairs]
        self._held = self._settled = len(pairs.first)
        return pairs


def _places_of(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """(n,) each: how many pairs of the first image, and of the second, are better."""
    count = len(pairs.first)
    images = np.concatenate([pairs.first, pairs.second])
    partners = np.concatenate([pairs.second, pairs.first])
    order = np.lexsort((partners, np.tile(pairs.semantic - pairs.visual, 2), images))
    ordered = images[order]
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if count else np.empty(0, np.int64)
    places = np.empty(2 * count, np.int64)
    lengths = np.diff(np.r_[begins, 2 * count])
    places[order] = np.arange(2 * count) - np.repeat(begins, lengths)
    return places[:count], places[count:]
