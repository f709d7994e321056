"""The benchmark of mining CLIP-blind pairs: its arms find the same, and it runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmark_command import ROOT, run
from clip_blind_scale import ABOVE, ARMS, BELOW, SIZES, planted_pairs, vectors_of, written


def test_all_arms_find_what_a_loop_finds(tmp_path: Path) -> None:
    sizes = SIZES["tiny"]
    vectors = vectors_of(300, sizes)
    sides = [written(tmp_path / name, array) for name, array in zip(("visual", "semantic"), vectors, strict=True)]
    visual, semantic = (side.array().astype(np.float64) for side in sides)
    expected = {
        (one, other)
        for one in range(300)
        for other in range(one + 1, 300)
        if visual[one] @ visual[other] > ABOVE and semantic[one] @ semantic[other] < BELOW
    }
    planted = planted_pairs(300, vectors[0], sizes)
    assert 5 < len(planted) <= len(expected)
    assert planted <= expected
    for arm in ARMS:
        (tmp_path / arm).mkdir()
        assert ARMS[arm](tmp_path, tmp_path / arm) == expected, arm


@pytest.mark.slow
def test_it_runs_and_writes_a_point_per_size_and_arm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, printed = run("clip_blind_scale", tmp_path, capsys)
    found = [(point["images"], point["arm"]) for point in result["points"]]
    assert found == [(300, "ours"), *((600, arm) for arm in ARMS)]
    assert all(point["planted"] == 1 and point["differs_from_ours"] == 0 for point in result["points"])
    assert set(result["at_1m"]) == set(ARMS)
    assert "One million images" in printed


def test_the_result_that_is_kept_clears_the_bars() -> None:
    result = json.loads((ROOT / "benchmarks" / "clip_blind_scale.json").read_text())
    assert result["preset"] == "small"
    last = {point["arm"]: point for point in result["points"] if point["images"] == result["points"][-1]["images"]}
    assert set(last) == set(ARMS)
    for arm in ("ours", "whole", "command"):
        assert last[arm]["images"] == 100_000
        assert last[arm]["peak_mb"] < 2000
        assert last[arm]["planted"] == 1
    assert min(result["ratios"]["cpu_seconds"][arm] for arm in ("numpy", "faiss")) > 1
    # float32 products of NumPy and FAISS may put a pair on the other side of a bound.
    assert all(point["differs_from_ours"] <= 2 for point in result["points"])
