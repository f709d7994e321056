"""Batches out of neighbours: every row once, no key twice, equally many rows, near ones together."""

from __future__ import annotations

import numpy as np
import pytest

from mllm_align.trainers.filling import fill_batches, num_batches


def line(count: int, near: int) -> np.ndarray:
    """Rows on a line: those next to a row are its nearest, the lower one first."""
    places = np.arange(count)
    order = np.argsort(np.abs(places[:, None] - places) + (places[:, None] < places) * 1e-3, axis=1, kind="stable")
    return order[:, 1 : near + 1]


def keyed(count: int, kind: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "unique":
        return rng.permutation(count)
    if kind == "captions":  # five rows of one picture, and some of another number
        return np.unique(np.concatenate([np.arange(count - 7) // 5, np.arange(7) % 3]), return_inverse=True)[1]
    keys = np.arange(count)
    keys[: count // 2] = 0  # half of all rows are of one picture
    return np.unique(rng.permutation(keys), return_inverse=True)[1]


@pytest.mark.parametrize("kind", ["unique", "captions", "crowd"])
@pytest.mark.parametrize("per_seed", [1, 4, 50])
@pytest.mark.parametrize(("count", "size"), [(24, 8), (41, 8), (40, 3), (9, 20), (30, 1)])
def test_every_row_comes_once_and_no_key_twice(kind: str, per_seed: int, count: int, size: int) -> None:
    for seed in range(3):
        keys = keyed(count, kind, seed)
        batches = fill_batches(line(count, min(2 * per_seed, count - 1)), keys, size, per_seed, rng_of(seed))
        assert len(batches) == num_batches(keys, size) == max(-(-count // size), np.bincount(keys).max())
        assert sorted(np.concatenate(batches).tolist()) == list(range(count))
        sizes = [len(rows) for rows in batches]
        assert max(sizes) <= size
        assert max(sizes) - min(sizes) <= 1
        assert all(len(set(keys[rows])) == len(rows) for rows in batches)


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_seed_brings_the_nearest_half_and_draws_the_other() -> None:
    """The first batch, of which nothing is taken yet: it is filled from one seed."""
    count, per_seed = 200, 8
    near = line(count, 2 * per_seed)
    for seed in range(20):
        batches = fill_batches(near, np.arange(count), per_seed + 1, per_seed, rng_of(seed))
        order = rng_of(seed).permutation(count)
        first = next(rows for rows in batches if order[0] in rows)
        assert first[0] == order[0]
        assert first[1:5].tolist() == near[order[0]][:4].tolist()
        assert set(first[5:].tolist()) <= set(near[order[0]][4:].tolist())
    drawn = {tuple(fill_batches(near, np.arange(count), 9, 8, rng_of(seed))[0]) for seed in range(20)}
    assert len(drawn) == 20


def test_near_rows_come_together_far_more_often_than_by_chance() -> None:
    count, size = 600, 12
    spread = {}
    for name, near in (("near", line(count, 24)), ("nowhere", np.full((count, 24), -1))):
        batches = fill_batches(near, np.arange(count), size, 12, rng_of(0))
        spread[name] = np.mean([np.abs(rows[:, None] - rows).mean() for rows in batches])
    assert spread["near"] < spread["nowhere"] / 4
    assert spread["nowhere"] == pytest.approx(count / 3, rel=0.15)


def test_without_neighbours_batches_are_drawn() -> None:
    near = np.full((30, 4), -1)
    one, same, other = (fill_batches(near, np.arange(30), 6, 2, rng_of(seed)) for seed in (0, 0, 1))
    assert [rows.tolist() for rows in one] == [rows.tolist() for rows in same]
    assert [rows.tolist() for rows in one] != [rows.tolist() for rows in other]
