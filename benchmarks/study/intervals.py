"""Runs of several seeds to means, intervals and differences: scenes and seeds are both resampled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

NUM_RESAMPLES = 4000
CONFIDENCE = 0.95

Array = np.ndarray


class Interval(NamedTuple):
    """A value, its bounds, and the two-sided bootstrap p of it being zero."""

    value: float
    low: float
    high: float
    p: float = 1.0


class Columns(NamedTuple):
    """What one arm's runs gave for one metric: (S, N) sums and bases per seed and unit, and the (N,) clusters."""

    values: Array
    base: Array
    clusters: Sequence[str]


def interval(arm: Columns, seed: int = 0) -> Interval:
    """The metric (sum over sum of bases, averaged over seeds)."""
    return _interval(lambda totals: _ratio(totals[..., 0], totals[..., 1]), [arm], seed)


def paired_interval(arm: Columns, other: Columns, seed: int = 0) -> Interval:
    """The metric of one arm minus that of another on the same units.

    Seeds are resampled for each arm on its own: run s of one arm has nothing in common with run s of the other but
    the rows it saw.
    """
    if list(arm.clusters) != list(other.clusters):
        raise ValueError("a paired difference needs the same units")

    def difference(totals: Array) -> Array:
        return _ratio(totals[..., 0], totals[..., 1]) - _ratio(totals[..., 2], totals[..., 3])

    return _interval(difference, [arm, other], seed)


def _ratio(top: Array, bottom: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bottom > 0, top / bottom, np.nan)


def _interval(statistic: Callable[[Array], Array], arms: Sequence[Columns], seed: int) -> Interval:
    names, index = np.unique(np.asarray(arms[0].clusters), return_inverse=True)
    weights, state = _weights(len(names), seed)
    rng = np.random.default_rng()
    rng.bit_generator.state = state
    drawn, whole = [], []
    for arm in arms:
        totals = _by_cluster(arm, index, len(names))  # (S, C, 2)
        runs = len(totals)
        picks = rng.multinomial(runs, np.full(runs, 1 / runs), size=NUM_RESAMPLES) / runs
        # The mean over the seeds that were drawn, of the resampled scenes.
        per_seed = np.einsum("bc,sck->bsk", weights, totals, optimize=True)
        drawn.append(np.einsum("bs,bsk->bk", picks, per_seed))
        whole.append(totals.sum(axis=1).mean(axis=0))
    draws = statistic(np.concatenate(drawn, axis=-1))
    value = float(statistic(np.concatenate(whole)))
    draws = draws[np.isfinite(draws)]
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    below, above = np.mean(draws <= 0), np.mean(draws >= 0)
    p = float(min(1.0, 2 * min(below, above) + 1 / NUM_RESAMPLES))
    return Interval(value, float(low), float(high), p)


@functools.lru_cache(maxsize=8)
def _weights(num_clusters: int, seed: int) -> tuple[Array, Any]:
    """(B, C) how often each resample has each cluster, and where the generator then stands: tables ask many times."""
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), size=NUM_RESAMPLES)
    return weights.astype(np.float64), rng.bit_generator.state


def _by_cluster(arm: Columns, index: Array, num_clusters: int) -> Array:
    totals = np.zeros((len(arm.values), num_clusters, 2))
    for number, (values, base) in enumerate(zip(arm.values, arm.base, strict=True)):
        np.add.at(totals[number], (index, 0), values)
        np.add.at(totals[number], (index, 1), base)
    return totals
