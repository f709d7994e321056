"""Vectors out of a stream of blocks: a sample of them, and equal chunks, whatever the blocks are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


class Sample:
    """Vectors drawn by the hash of their number, so that it does not matter how they were cut into blocks; one pass.

    Args:
        blocks: (n, d) arrays.
        limit: How many to keep.
        seed: Of the hash.

    Attributes:
        seen: How many vectors there are in all.
    """

    def __init__(self, blocks: Iterable[np.ndarray], limit: int, seed: int) -> None:
        self.seen = 0
        kept: list[tuple[np.ndarray, np.ndarray]] = []
        held, highest = 0, np.uint64(2**64 - 1)
        for block in blocks:
            hashes = _hashes(np.arange(self.seen, self.seen + len(block), dtype=np.uint64), seed)
            self.seen += len(block)
            chosen = hashes <= highest
            kept.append((hashes[chosen], block[chosen]))
            held += int(chosen.sum())
            if held > 2 * limit:
                kept = [_least(kept, limit)]
                held, highest = limit, kept[0][0].max()
        self._hashes, self._vectors = _least(kept, limit) if kept else (np.empty(0), np.empty((0, 0)))

    def first(self, count: int) -> np.ndarray:
        """That many of them, or all."""
        return np.ascontiguousarray(self._vectors[:count], np.float32)


def _least(parts: list[tuple[np.ndarray, np.ndarray]], count: int) -> tuple[np.ndarray, np.ndarray]:
    hashes, vectors = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    order = np.argsort(hashes, kind="stable")[:count]
    return hashes[order], vectors[order]


def _hashes(numbers: np.ndarray, seed: int) -> np.ndarray:
    """SplitMix64 of each."""
    with np.errstate(over="ignore"):
        mixed = (numbers + np.uint64(seed % 2**32) * np.uint64(2**32)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def equal_chunks(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same vectors in arrays of `size`, however they were cut."""
    waiting: list[np.ndarray] = []
    held = 0
    for block in blocks:
        _check(block)
        waiting.append(block)
        held += len(block)
        if held >= size:
            joined = np.concatenate(waiting)
            whole = held - held % size
            for start in range(0, whole, size):
                yield np.ascontiguousarray(joined[start : start + size], np.float32)
            waiting, held = [joined[whole:]], held - whole
    if held:
        yield np.ascontiguousarray(np.concatenate(waiting), np.float32)


def _check(block: np.ndarray) -> None:
    if block.ndim != 2:
        raise ValueError(f"vectors come in arrays of shape (n, d), not {block.shape}")
    lengths = np.linalg.norm(block, axis=1)
    if not np.all(np.abs(lengths - 1) < 1e-3):  # also where there is a NaN
        raise ValueError("vectors of an index must have length 1 (divide each by its norm)")
