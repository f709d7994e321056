"""Batches of a row and its neighbours, out of all rows, each once: pure arithmetic on row numbers."""

from __future__ import annotations

from collections import deque

import numpy as np


def num_batches(keys: np.ndarray, size: int) -> int:
    """How many batches of at most `size` rows there must be, where none has two rows of one key."""
    return max(-(-len(keys) // size), int(np.bincount(keys).max(initial=0)))


def fill_batches(
    neighbours: np.ndarray, keys: np.ndarray, size: int, per_seed: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """All rows in `num_batches` batches of (within one) equally many rows.

    A batch is filled from a seed, drawn among the rows that are left, and `per_seed` of its neighbours that are left:
    one half the nearest, one half drawn from the others; then from another seed, until it is full.

    Args:
        neighbours: (N, K) rows near to each, nearest first; -1 for none.
        keys: (N,) from 0; rows of one key never come in one batch.
        size: Most rows of a batch.
        per_seed: Neighbours that come with a seed.
        rng: Of the draws.

    Returns:
        Row numbers (n,) of each batch.
    """
    filling = _Filling(neighbours, keys, per_seed, rng)
    count = num_batches(keys, size)
    found = [filling.next_batch(left) for left in range(count, 0, -1)]
    return [found[place] for place in rng.permutation(count)]


class _Filling:
    """What is left while batches are filled."""

    def __init__(self, neighbours: np.ndarray, keys: np.ndarray, per_seed: int, rng: np.random.Generator) -> None:
        self.neighbours, self.keys, self.per_seed, self.rng = neighbours, keys, per_seed, rng
        self.free = np.ones(len(keys), bool)
        self.num_free = len(keys)
        self.seeds = deque(rng.permutation(len(keys)).tolist())
        self.of_key = np.bincount(keys)
        self.most = int(self.of_key.max(initial=0))
        by_key = np.argsort(keys, kind="stable")
        self.members = np.split(by_key, np.cumsum(self.of_key)[:-1]) if self.most > 1 else []
        # The batch that last took a row of each key, by how many were left.
        self.taken_by = np.zeros(len(self.of_key), np.int64)

    def next_batch(self, left: int) -> np.ndarray:
        """One of the `left` batches that are still to be filled."""
        room = -(-self.num_free // left)
        rows: list[int] = []
        if left == 1:
            return np.flatnonzero(self.free)
        if left <= self.most:
            # A key of which as many rows are left as batches has one in each of them.
            for key in np.flatnonzero(self.of_key == left).tolist():
                own = self.members[key]
                self._take(rows, self.rng.choice(own[self.free[own]]), left)
        waiting: list[int] = []
        while len(rows) < room:
            seed = self.seeds.popleft()
            if not self.free[seed]:
                continue
            if self.taken_by[self.keys[seed]] == left:
                waiting.append(seed)
                continue
            self._take(rows, seed, left)
            for row in self._near(seed, min(self.per_seed, room - len(rows)), left):
                self._take(rows, row, left)
        self.seeds.extendleft(reversed(waiting))
        return np.array(rows)

    def _near(self, seed: int, count: int, left: int) -> list[int]:
        near = self.neighbours[seed]
        near = near[near >= 0]
        near = near[self.free[near] & (self.taken_by[self.keys[near]] != left)]
        _, first = np.unique(self.keys[near], return_index=True)
        near = near[np.sort(first)]
        nearest, others = near[: -(-count // 2)], near[-(-count // 2) :]
        drawn = self.rng.permutation(len(others))[: count - len(nearest)]
        return [*nearest.tolist(), *others[np.sort(drawn)].tolist()]

    def _take(self, rows: list[int], row: int, left: int) -> None:
        rows.append(int(row))
        self.free[row] = False
        self.num_free -= 1
        key = self.keys[row]
        self.of_key[key] -= 1
        self.taken_by[key] = left
