"""Metrics with the cluster of each of their units: what benchmarks compute and the bootstrap resamples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from mllm_align_eval.items import Item
from mllm_align_eval.statistics import Array, Metric, mean_metric, ratio


class Measure(NamedTuple):
    """A metric and the cluster of each of its units."""

    metric: Metric
    clusters: tuple[str, ...]


Measures = dict[str, Measure]


def mean(items: Sequence[Item], value: Callable[[Item], float]) -> Measure:
    """The mean of a number over items."""
    return Measure(mean_metric([value(item) for item in items]), clusters_of(items))


def share(items: Sequence[Item], top: Callable[[Item], float], bottom: Callable[[Item], float]) -> Measure:
    """One sum over another; undefined (NaN) where the second is 0."""
    columns = np.array([[top(item), bottom(item)] for item in items], dtype=np.float64).reshape(-1, 2)
    return Measure(Metric(columns, ratio), clusters_of(items))


def f1(items: Sequence[Item], said: Callable[[Item], bool], true: Callable[[Item], bool]) -> dict[str, Measure]:
    """Precision, recall and F1 of one class: `said` it, and it is `true`. Undefined (NaN) where it never occurs."""
    hits = np.array([[said(item) and true(item), said(item), true(item)] for item in items], dtype=np.float64)
    clusters = clusters_of(items)
    return {
        "precision": Measure(Metric(hits[:, [0, 1]], ratio), clusters),
        "recall": Measure(Metric(hits[:, [0, 2]], ratio), clusters),
        "f1": Measure(Metric(hits, f1_of), clusters),
    }


def f1_of(totals: Array) -> Array:
    """F1 of (hits, said, true) totals, the harmonic mean of hits / said and hits / true."""
    return ratio(np.stack([2 * totals[..., 0], totals[..., 1] + totals[..., 2]], axis=-1))


def mean_of(measures: Sequence[Measure]) -> Measure:
    """The unweighted mean of metrics of different items, as of several splits; clusters may be shared."""
    widths = [measure.metric.columns.shape[1] for measure in measures]
    starts = np.cumsum([0, *widths])
    columns = np.zeros((sum(len(measure.clusters) for measure in measures), starts[-1]))
    row = 0
    for measure, start, width in zip(measures, starts[:-1], widths, strict=True):
        columns[row : row + len(measure.clusters), start : start + width] = measure.metric.columns
        row += len(measure.clusters)

    def statistic(totals: Array) -> Array:
        parts = [
            measure.metric.statistic(totals[..., start : start + width])
            for measure, start, width in zip(measures, starts[:-1], widths, strict=True)
        ]
        return np.mean(np.stack(parts, axis=-1), axis=-1)

    return Measure(Metric(columns, statistic), tuple(name for measure in measures for name in measure.clusters))


def mean_over_groups(
    items: Sequence[Item], value: Callable[[Item], float], group: Callable[[Item], str] = lambda item: item.kind
) -> Measure:
    """The unweighted mean over groups of items of each group's mean; in a resample, over the groups that it has."""
    names = {name: place for place, name in enumerate(dict.fromkeys(map(group, items)))}
    own, rows = np.array([names[group(item)] for item in items]), np.arange(len(items))
    values = np.concatenate([[value(item) for item in items], np.ones(len(items))])
    places = np.concatenate([rows, rows]), np.concatenate([own, own + len(names)])
    columns = sparse.csr_array((values, places), (len(items), 2 * len(names)))
    return Measure(Metric(columns, _group_mean), clusters_of(items))


def _group_mean(totals: Array) -> Array:
    """The mean of sum / count over the groups that there are; NaN where there is none."""
    sums, counts = np.split(totals, 2, axis=-1)
    means = ratio(np.stack([sums, counts], axis=-1))
    there = np.isfinite(means)
    return ratio(np.stack([np.where(there, means, 0).sum(axis=-1), there.sum(axis=-1)], axis=-1))


def by_split(items: Iterable[Item]) -> dict[str, list[Item]]:
    """The items of each split, in order."""
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(item.split, []).append(item)
    return found


def by_kind(items: Iterable[Item]) -> dict[str, list[Item]]:
    """The items of each kind, in order."""
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(item.kind, []).append(item)
    return found


def clusters_of(items: Sequence[Item]) -> tuple[str, ...]:
    """The cluster of each item."""
    return tuple(item.cluster for item in items)
