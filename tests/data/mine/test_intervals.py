"""Intervals: Wilson's where rows are alone, the cluster bootstrap's where they are not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mllm_align.data.mine.intervals import share


def test_rows_that_are_alone_have_wilsons_interval() -> None:
    values = [1.0] * 71 + [0.0] * 29
    found = share(values, range(100))
    expected = stats.binomtest(71, 100).proportion_ci(method="wilson")
    assert (found.value, found.rows, found.clusters) == (0.71, 100, 100)
    assert found.low == pytest.approx(expected.low, abs=1e-3)
    assert found.high == pytest.approx(expected.high, abs=1e-3)
    assert str(found) == "71 % (61-79)"


def test_clusters_widen_it_as_a_bootstrap_over_clusters_does() -> None:
    rng = np.random.default_rng(0)
    rates = rng.beta(2, 2, 200)
    clusters = np.repeat(np.arange(200), rng.integers(1, 9, 200))
    values = (rng.random(len(clusters)) < rates[clusters]).astype(float)
    found = share(values, clusters.tolist())
    sums, sizes = np.bincount(clusters, values), np.bincount(clusters)
    draws = rng.integers(0, 200, (4000, 200))
    low, high = np.quantile(sums[draws].sum(1) / sizes[draws].sum(1), (0.025, 0.975))
    assert found.low == pytest.approx(low, abs=0.005)
    assert found.high == pytest.approx(high, abs=0.005)
    alone = share(values, range(len(values)))
    assert found.high - found.low > 1.1 * (alone.high - alone.low)


def test_copies_of_a_row_are_one_row() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0] * 5
    once, thrice = share(values, range(30)), share(np.repeat(values, 3), np.repeat(np.arange(30), 3).tolist())
    assert thrice.low == pytest.approx(once.low, abs=0.01)
    assert thrice.high == pytest.approx(once.high, abs=0.01)


def test_cross_validation_widens_it() -> None:
    plain, learned = share([1.0, 0.0] * 50, range(100)), share([1.0, 0.0] * 50, range(100), folds=5)
    assert (learned.high - learned.low) / (plain.high - plain.low) == pytest.approx(1.5, abs=0.06)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_or_none_still_has_width(value: float) -> None:
    found = share([value] * 40, [number // 2 for number in range(40)])
    assert found.clusters == 20
    assert abs(found.low - found.high) > 0.1
    assert found.low <= value <= found.high


def test_one_cluster_and_nothing_have_no_bounds() -> None:
    assert math.isnan(share([1.0, 0.0], ["a", "a"]).low)
    assert str(share([1.0, 0.0], ["a", "a"])) == "50 %"
    assert str(share([], [])) == "-"


def test_it_covers_what_it_should() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        rates = rng.beta(3, 2, 40)
        clusters = np.repeat(np.arange(40), 4)
        found = share((rng.random(160) < rates[clusters]).astype(float), clusters.tolist())
        hits += found.low <= 0.6 <= found.high
    assert 0.92 <= hits / 400 <= 0.985
