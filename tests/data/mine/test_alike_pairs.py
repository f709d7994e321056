"""The search for alike pairs: bounds that hold, units that cover every pair once, memory that does not grow."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from mllm_align.data.blocks import BlockJob
from mllm_align.data.mine import alike_pairs, best_pairs
from mllm_align.data.mine import tiles as tiles_module
from mllm_align.data.mine.alike_pairs import TilePairs, exact_cosines, tile_pair
from mllm_align.data.mine.best_pairs import BestPairs, Pairs
from mllm_align.data.mine.embeddings import Embeddings, embedding_schema
from mllm_align.data.mine.sketch import Sketch
from mllm_align.data.mine.tiles import Tiles
from retrieval_scale import clustered


def tiles_of(folder: Path, vectors: np.ndarray, size: int, precision: str = "float32") -> Tiles:
    settings = {"job": "embed", "dim": vectors.shape[1], "precision": precision}
    kept = vectors.astype(precision)
    job = BlockJob(folder, settings, len(vectors), embedding_schema(vectors.shape[1], precision), 100)
    job.run(
        lambda rows: [{"row": row, "digest": row.to_bytes(16, "big"), "embedding": kept[row]} for row in rows],
        "made",
        progress=False,
    )
    embeddings = Embeddings(folder)
    return Tiles(embeddings, embeddings.rows, size)


def test_units_are_every_pair_of_tiles_once() -> None:
    count = 40
    pairs = [tile_pair(unit) for unit in range(count * (count + 1) // 2)]
    assert sorted(pairs) == [(one, other) for one in range(count) for other in range(one, count)]
    assert tile_pair(10**12) == tile_pair(10**12)
    far = 3_000_000 * 3_000_001 // 2
    assert tile_pair(far - 1) == (2_999_999, 2_999_999)
    assert tile_pair(far) == (0, 3_000_000)


@pytest.mark.parametrize("kept", [0, 600, 10**9])
def test_tiles_are_the_vectors_of_their_rows(tmp_path: Path, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles_module, "KEPT_BYTES", kept)
    vectors = clustered(250, 16, 1)
    whole = tiles_of(tmp_path, vectors, 60, "float16")
    rows = np.array([3, 4, 99, 100, 101, 249])
    tiles = Tiles(whole.embeddings, rows, 4)
    assert len(tiles) == 2
    assert np.array_equal(np.concatenate(list(tiles)), whole.embeddings.array()[rows])
    assert np.array_equal(tiles[1], whole.embeddings.array()[rows[4:]])
    for number in (2, 0, 4, 2, 1, 3, 0, 4):
        assert np.array_equal(whole[number], whole.embeddings.array()[whole.rows][60 * number : 60 * number + 60])
    for count in (1, 6, 50):
        drawn = tiles.sample(count)
        assert len(drawn) == min(count, 6)
        assert {vector.tobytes() for vector in drawn} <= {vector.tobytes() for vector in np.concatenate(list(tiles))}


@pytest.mark.parametrize("kept", [0, 4, 32])
def test_no_sketch_is_below_a_cosine(kept: int) -> None:
    vectors = clustered(400, 64, 1, topics=10)
    sketch = Sketch(vectors, 0.9)
    if kept:
        basis = torch.linalg.qr(torch.randn(64, kept, generator=torch.Generator().manual_seed(0))).Q
        sketch.basis = basis  # any orthonormal one
    elif sketch.basis is not None:
        assert sketch.basis.shape[1] < 64
    rough = sketch(vectors).double().numpy()
    cosines = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    assert (rough @ rough.T >= cosines - alike_pairs.MARGIN / 2).all()


def test_a_sketch_is_taken_where_it_saves_products_and_not_where_it_does_not() -> None:
    assert Sketch(clustered(2000, 256, 1), 0.95).basis is not None
    flat = np.random.default_rng(0).standard_normal((2000, 40)).astype(np.float32)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    assert Sketch(flat, 0.3).basis is None
    assert Sketch(flat[:1], 0.3).basis is None


@pytest.mark.parametrize("sketch", [True, False])
@pytest.mark.parametrize("above", [-1.0, 0.3, 0.9])
def test_exactly_the_pairs_above(tmp_path: Path, sketch: bool, above: float) -> None:
    vectors = clustered(230, 48, 1, topics=10)
    tiles = tiles_of(tmp_path, vectors, 64)
    search = TilePairs(tiles, above, sketch=sketch)
    parts = [found for unit in range(len(search)) for found in search(unit)]
    found = {(int(i), int(j)): c for part in parts for i, j, c in zip(*part, strict=True)}
    assert len(found) == sum(len(part.first) for part in parts)
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    assert found.keys() == {(i, j) for i in range(230) for j in range(i + 1, 230) if exact[i, j] > above}
    assert all(abs(exact[pair] - cosine) < 1e-12 for pair, cosine in found.items())


def test_a_cosine_depends_on_its_two_vectors_alone() -> None:
    vectors = clustered(300, 77, 1)
    first, second = np.arange(299), np.arange(1, 300)
    together = exact_cosines(vectors, first, vectors, second)
    for place in (0, 150, 298):
        alone = exact_cosines(vectors[place : place + 1], np.array([0]), vectors, second[place : place + 1])
        assert alone[0] == together[place]


def best_by_loop(pairs: list[tuple[int, int, float]], k: int) -> list[tuple[int, int]]:
    ranked = sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))
    by_image: dict[int, list[tuple[int, int, float]]] = {}
    for pair in pairs:
        for image in pair[:2]:
            by_image.setdefault(image, []).append(pair)
    best = {
        image: {pair[:2] for pair in sorted(own, key=lambda pair: (-pair[2], pair[0] + pair[1] - image))[:k]}
        for image, own in by_image.items()
    }
    return [pair[:2] for pair in ranked if all(pair[:2] in best[image] for image in pair[:2])]


@pytest.mark.parametrize("pending", [1, 40, 10**6])
@pytest.mark.parametrize("k", [1, 3, 100])
def test_the_best_of_both_images_in_whatever_order(k: int, pending: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best_pairs, "PENDING", pending)
    rng = np.random.default_rng(0)
    pairs = [(i, j, float(rng.integers(0, 9))) for i in range(25) for j in range(i + 1, 25) if rng.random() < 0.7]
    expected = best_by_loop(pairs, k)
    for _ in range(3):
        rng.shuffle(pairs)
        best = BestPairs(k)
        for start in range(0, len(pairs), 17):
            part = np.array(pairs[start : start + 17])
            ends = part[:, :2].astype(np.int64)
            best.add(Pairs(ends[:, 0], ends[:, 1], part[:, 2], np.zeros(len(part))))
            best.add(Pairs(ends[:2, 0], ends[:2, 1], part[:2, 2], np.zeros(2)))  # found from the other side, too
        found = best.best()
        assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [tuple(p) for p in expected]
        shown = np.bincount(np.concatenate([found.first, found.second]))
        assert shown.max() <= k


def test_memory_does_not_grow_with_the_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair is alike: as many as there can be."""
    monkeypatch.setattr(alike_pairs, "STRIP", 2000)
    monkeypatch.setattr(alike_pairs, "SETTLED", 500)
    monkeypatch.setattr(best_pairs, "PENDING", 1000)
    monkeypatch.setattr(tiles_module, "KEPT_BYTES", 0)
    peaks, pairs = [], []
    for count in (300, 1200):
        tiles = tiles_of(tmp_path / str(count), clustered(count, 8, 1, topics=3), 100)
        search, best, seen = TilePairs(tiles, -1.0), BestPairs(2), 0
        list(search(0))  # what is loaded once
        tracemalloc.start()
        for unit in range(len(search)):
            for found in search(unit):
                seen += len(found.first)
                best.add(Pairs(*found, np.zeros(len(found.first))))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        pairs.append(seen)
    assert pairs == [300 * 299 // 2, 1200 * 1199 // 2]
    assert peaks[1] < 3 * peaks[0]  # of sixteen times as many pairs, four times as many images
