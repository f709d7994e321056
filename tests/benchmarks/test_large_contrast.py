"""How many pairs fit, and what the stored step of 2,048 took."""

from __future__ import annotations

import json

import pytest

import table
from large_contrast import cached, grow, one_graph, summed_up
from pairs import Pairs, pair_shape


def point(pairs: int, resident: float, limit: float = 50.0) -> dict[str, float | bool]:
    return {"pairs": pairs, "resident_mb": resident, "seconds": 1.0, "fits": resident <= limit}


def test_the_most_that_fit_and_what_each_takes() -> None:
    found = summed_up([point(4, 10.0), point(8, 30.0), point(16, 70.0)])
    assert found["most_pairs"] == 8
    assert found["mb_per_pair"] == 5.0
    assert summed_up([point(4, 60.0), point(8, 80.0)])["most_pairs"] == 0


@pytest.mark.slow
def test_nothing_is_tried_beyond_what_does_not_fit() -> None:
    points = grow(cached, pair_shape("tiny"), 1, (2, 4, 8), limit=1.0)
    assert [(found["pairs"], found["fits"]) for found in points] == [(2, False)]


def test_both_steps_have_one_loss() -> None:
    sides = [build(pair_shape("tiny")) for build in (one_graph, cached)]
    losses = [side.step(side.prepare(Pairs(40))) for side in sides]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_the_results_beside_the_benchmark_clear_the_bars() -> None:
    result = json.loads((table.FOLDER / "large_contrast.json").read_text())
    last = result["cached"]["points"][-1]
    assert last["pairs"] == result["cached"]["most_pairs"] == 2048
    assert last["resident_mb"] < 6000
    assert result["cached"]["mb_per_pair"] < 0.5 * result["one_graph"]["mb_per_pair"]
