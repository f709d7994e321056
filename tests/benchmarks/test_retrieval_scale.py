"""The benchmark of neighbour search: its vectors, its truth, its fits, and that it runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmark_command import ROOT, run
from mllm_align.data.mine.scan import nearest
from retrieval_scale import KINDS, LAWS, Blocks, brute_force, clustered, extrapolate, fit


def test_the_truth_is_that_of_exact_search(tmp_path: Path) -> None:
    vectors, queries = clustered(5000, 16, seed=1), clustered(40, 16, seed=2)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
    assert np.array_equal(vectors, clustered(5000, 16, seed=1))
    vectors.tofile(tmp_path / "vectors")
    blocks = Blocks(tmp_path / "vectors", 4500, 16)
    assert np.array_equal(np.concatenate(list(blocks)), vectors[:4500])
    numbers, most = brute_force(blocks, queries)
    expected, similarities = nearest(vectors[:4500], queries, 10)
    assert np.array_equal(np.sort(numbers, 1), np.sort(expected, 1))
    assert np.allclose(most, similarities[:, 0])


def test_a_fit_finds_what_the_times_were_made_of() -> None:
    sizes = [1000, 2000, 4000]
    for growth in (float, math.sqrt, math.log):
        offset, slope = fit(sizes, [3 + 0.5 * growth(size) for size in sizes], growth)
        assert math.isclose(offset, 3, rel_tol=1e-6)
        assert math.isclose(slope, 0.5, rel_tol=1e-6)
    assert fit(sizes, [5.0, 4.0, 3.0], float)[0] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_ten_million_follow_from_the_law(kind: str) -> None:
    law = LAWS[kind]
    points = [
        {
            "kind": kind,
            "vectors": size,
            "build_cpu_seconds": 1 + 1e-6 * law.build(size),
            "query_cpu_ms": 2 + 0.1 * law.query(size),
            "file_mb": size / 1000,
        }
        for size in (1000, 2000, 4000)
    ]
    found = extrapolate(points, kind)
    assert math.isclose(found["law"]["build_hours"], (1 + 1e-6 * law.build(1e7)) / 3600, rel_tol=1e-5)
    assert math.isclose(found["law"]["query_hours"], 1e7 * (2 + 0.1 * law.query(1e7)) / 3.6e6, rel_tol=1e-5)
    assert math.isclose(found["file_gb"], 1e4 / 1024)


@pytest.mark.slow
def test_it_runs_and_writes_a_point_per_size_and_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, printed = run("retrieval_scale", tmp_path, capsys)
    assert [(point["vectors"], point["kind"]) for point in result["points"]] == [
        (size, kind) for size in (300, 600, 1200) for kind in KINDS
    ]
    for point in result["points"]:
        assert point["recall_at_10"] == 1 if point["kind"] == "exact" else point["recall_at_10"] > 0.95
    assert set(result["at_10m"]) == set(KINDS)
    assert "core hours, 10M" in printed


def test_the_result_that_is_kept_says_what_the_index_is_chosen_by() -> None:
    result = json.loads((ROOT / "benchmarks" / "retrieval_scale.json").read_text())
    most = {point["kind"]: point for point in result["points"] if point["vectors"] == 100_000}
    assert most["exact"]["recall_at_10"] == 1
    assert most["hnsw"]["recall_at_10"] > most["ivf"]["recall_at_10"] > 0.95
    assert most["hnsw"]["query_cpu_ms"] < most["ivf"]["query_cpu_ms"] < most["exact"]["query_cpu_ms"]
