"""How many pairs fit, and what the stored step of 2,048 took."""

from __future__ import annotations

import json

import pytest

import table
from large_contrast import STEP, cached, largest, most, one_graph
from pairs import Pairs, pair_shape


def test_the_most_that_fit_lie_on_the_line() -> None:
    assert most({10: 200.0, 20: 300.0}, 1000.0) == (88, 10.0)  # 90 would fit


def test_the_largest_is_one_that_was_seen_to_fit() -> None:
    seen: list[int] = []

    def measure(count: int) -> dict[str, float]:
        seen.append(count)
        return {"pairs": count, "resident_mb": 100.0 + 10 * count + (0.05 * count**2 if count > 20 else 0)}

    found = largest(measure, (10, 20), 1000.0)
    assert found["resident_mb"] <= 1000.0
    assert found["pairs"] == seen[-1] < seen[2] == 88
    assert measure(int(found["pairs"]) + STEP)["resident_mb"] > 1000.0
    assert found["mb_per_pair"] == 10.0


def test_both_steps_have_one_loss() -> None:
    sides = [build(pair_shape("tiny")) for build in (one_graph, cached)]
    losses = [side.step(side.prepare(Pairs(40))) for side in sides]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_the_results_beside_the_benchmark_clear_the_bars() -> None:
    result = json.loads((table.FOLDER / "large_contrast.json").read_text())
    assert result["preset"] == "small"
    assert result["cached"]["pairs"] == 2048
    assert result["cached"]["resident_mb"] < 6000
    assert result["one_graph"]["resident_mb"] <= result["limit_mb"]
    assert result["times_as_many"] == result["cached"]["pairs"] / result["one_graph"]["pairs"]
    assert result["times_as_many"] > 8
