"""Exact search is what a loop in float64 finds, ties and near ties included."""

from __future__ import annotations

import numpy as np
import pytest

from mllm_align.data.mine import scan
from mllm_align.data.mine.scan import nearest


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def loop(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """One pair at a time, sorted by similarity, then by number."""
    numbers, similarities = [], []
    for query in queries.astype(np.float64):
        found = [float((vector * query).sum()) for vector in vectors.astype(np.float64)]
        order = sorted(range(len(found)), key=lambda number: (-found[number], number))[:k]
        numbers.append(order)
        similarities.append([found[number] for number in order])
    return np.array(numbers), np.array(similarities)


def cases() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((400, 48))
    crowd = rng.standard_normal(48) + 1e-4 * rng.standard_normal((400, 48))  # closer than float32 can tell
    copies = base[rng.integers(0, 5, 400)]
    return {"spread": unit(base), "crowded": unit(crowd), "copies": unit(copies)}


@pytest.mark.parametrize("case", ["spread", "crowded", "copies"])
@pytest.mark.parametrize("k", [1, 10, 400])
def test_it_is_the_loop(case: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "VECTORS", 64)
    monkeypatch.setattr(scan, "QUERIES", 7)
    vectors = cases()[case]
    numbers, similarities = nearest(vectors, vectors[:25], k)
    expected, exact = loop(vectors, vectors[:25], k)
    assert np.array_equal(numbers, expected)
    assert np.abs(similarities - exact).max() < 1e-14


def test_a_query_alone_gets_the_same_bits() -> None:
    vectors = cases()["crowded"]
    numbers, similarities = nearest(vectors, vectors[:40], 5)
    for place in range(40):
        one, exact = nearest(vectors, vectors[place : place + 1], 5)
        assert np.array_equal(one[0], numbers[place])
        assert np.array_equal(exact[0], similarities[place])
