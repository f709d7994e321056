"""Intervals by a bootstrap over clusters, and what a set of questions is able to show.

Questions about one scene are not independent, so scenes are resampled, never questions. Every metric is written as a
function of column totals (right answers, questions, hits, ...); a resample then is a weighted sum over clusters, and
thousands of them are a few matrix products. A difference between two arms is one metric of both arms' columns, so both
see the same resampled scenes: the difference is paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse, stats

Array = np.ndarray[Any, np.dtype[np.float64]]
Sparse = Any  # scipy.sparse.csr_array, in whose types a shape may be None
AT_ONCE = 2**21  # totals of as many numbers are dense at a time: 16 MiB


@dataclass(frozen=True)
class Metric:
    """A number computed from column totals.

    Attributes:
        columns: (N, K) what each unit (a question, or a pair of questions) adds to each total; a sparse array where
            there are as many totals as units.
        statistic: Totals (..., K) to values (...).
        proportion: Whether it is a share of units, so that an exact binomial bound exists at 0 and 1.
        biased: Whether its noise adds up instead of cancelling, as in a sum of absolute values. Resampling adds that
            bias a second time, so the draws are moved back by as much as they are off on average.
    """

    columns: Array | Sparse
    statistic: Callable[[Array], Array]
    proportion: bool = False
    biased: bool = False

    def value(self) -> float:
        """The metric on all units."""
        return float(self.statistic(self.columns.sum(axis=0)))


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; `n` counts units, `clusters` what was resampled, `error` is the bootstrap's.

    `p` is twice the share of resamples on the other side of zero (2 over their number at the least): the two-sided
    test of a difference, and nothing that a single metric should be read by.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int
    error: float
    p: float = float("nan")

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def as_dict(self) -> dict[str, float | int]:
        """`value`, `low`, `high`, `n`."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def ratio(totals: Array) -> Array:
    """First total over second; NaN where the second is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(totals[..., 1] > 0, totals[..., 0] / totals[..., 1], np.nan)


def mean_metric(values: Sequence[float] | Array) -> Metric:
    """The mean of one number per unit; a proportion where these are all 0 or 1."""
    array = np.asarray(values, dtype=np.float64)
    return Metric(np.stack([array, np.ones_like(array)], axis=1), ratio, bool(np.isin(array, (0, 1)).all()))


def difference(first: Metric, second: Metric) -> Metric:
    """The paired difference of two metrics of the same units, first minus second."""
    if first.columns.shape[0] != second.columns.shape[0]:
        sizes = f"{first.columns.shape[0]} and {second.columns.shape[0]}"
        raise ValueError(f"a paired difference needs the same units, got {sizes}")
    width, both = first.columns.shape[1], [first.columns, second.columns]
    are_sparse = any(isinstance(columns, sparse.csr_array) for columns in both)
    return Metric(
        sparse.csr_array(sparse.hstack(both)) if are_sparse else np.concatenate(both, axis=1),
        lambda totals: first.statistic(totals[..., :width]) - second.statistic(totals[..., width:]),
        biased=first.biased or second.biased,
    )


class ClusterBootstrap:
    """Resamples clusters with replacement; the same draws serve every metric of the same units.

    Bias-corrected and accelerated (BCa) intervals by default (Efron 1987, https://doi.org/10.2307/2289144), with
    percentile intervals where the correction is undefined (no spread). A proportion of exactly 0 or 1 has no spread
    in any resample; its bound is Clopper and Pearson's for as many trials as there are clusters. One cluster shows
    nothing about others: its bounds and error are NaN.

    Args:
        clusters: (N,) the cluster of each unit.
        num_resamples: Resamples.
        confidence: Coverage.
        method: "bca" or "percentile".
        seed: Of the draws.
    """

    def __init__(
        self,
        clusters: Sequence[str],
        num_resamples: int = 2000,
        confidence: float = 0.95,
        method: str = "bca",
        seed: int = 0,
    ) -> None:
        if method not in ("bca", "percentile"):
            raise ValueError(f"method must be 'bca' or 'percentile', not {method!r}")
        if not len(clusters):
            raise ValueError("there is nothing to resample: no units")
        names, self.index = np.unique(np.asarray(clusters), return_inverse=True)
        self.num_clusters = len(names)
        self.confidence, self.method = confidence, method
        rng = np.random.default_rng(seed)
        uniform = np.full(self.num_clusters, 1 / self.num_clusters)
        self.weights = rng.multinomial(self.num_clusters, uniform, size=num_resamples).astype(np.float64)

    def estimate(self, metric: Metric) -> Estimate:
        """The metric with its interval.

        Raises:
            ValueError: If the metric has another number of units.
        """
        if metric.columns.shape[0] != len(self.index):
            raise ValueError(f"metric of {metric.columns.shape[0]} units, clusters of {len(self.index)}")
        totals = self._totals(metric.columns)
        value = float(metric.statistic(totals.sum(axis=0)))
        if self.num_clusters < 2:
            return self._result(metric, value, np.nan, np.nan, np.nan)
        draws = _in_parts(metric, self.weights, totals)
        draws = draws[np.isfinite(draws)]
        if metric.biased and len(draws):
            draws = draws - (draws.mean() - value)
        if not np.isfinite(value) or not len(draws):
            return self._result(metric, value, np.nan, np.nan, np.nan)
        error = float(draws.std(ddof=1)) if len(draws) > 1 else 0.0
        if metric.proportion and value in (0.0, 1.0):
            low, high = clopper_pearson(round(value * self.num_clusters), self.num_clusters, self.confidence)
        else:
            levels = self._levels(metric, totals, value, draws)
            low, high = (float(bound) for bound in np.quantile(draws, levels))
        beyond = min(np.mean(draws <= 0), np.mean(draws >= 0))
        p = min(1.0, 2 * max(float(beyond), 1 / len(draws)))
        return self._result(metric, value, low, high, error, p)

    def _totals(self, columns: Array | Sparse) -> Array | Sparse:
        """(C, K) what each cluster adds to each total."""
        if isinstance(columns, sparse.csr_array):
            ones = np.ones(len(self.index))
            member = sparse.csr_array((ones, (self.index, np.arange(len(self.index)))), (self.num_clusters, len(ones)))
            return sparse.csr_array(member @ columns)
        totals = np.zeros((self.num_clusters, columns.shape[1]))
        np.add.at(totals, self.index, columns)
        return totals

    def _result(
        self, metric: Metric, value: float, low: float, high: float, error: float, p: float = float("nan")
    ) -> Estimate:
        return Estimate(value, low, high, metric.columns.shape[0], self.num_clusters, error, p)

    def _levels(self, metric: Metric, totals: Array | Sparse, value: float, draws: Array) -> tuple[float, float]:
        """The two quantile levels of the interval."""
        tail = (1 - self.confidence) / 2
        plain = (tail, 1 - tail)
        if self.method == "percentile" or metric.biased:
            return plain
        # Few 0/1 outcomes give many draws equal to the value; rounding in a difference of ratios must not split them.
        tied = np.isclose(draws, value, rtol=0, atol=1e-9)
        below = np.mean((draws < value) & ~tied) + np.mean(tied) / 2
        left_out = _left_out(metric, totals)
        left_out = left_out[np.isfinite(left_out)]
        deviations = left_out.mean() - left_out if len(left_out) else np.zeros(1)
        spread = float((deviations**2).sum()) ** 1.5
        if not 0 < below < 1 or spread < 1e-300:
            return plain
        bias = float(stats.norm.ppf(below))
        acceleration = float((deviations**3).sum()) / (6 * spread)
        z = stats.norm.ppf(np.array(plain))
        shifted = stats.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
        return float(shifted[0]), float(shifted[1])


def _in_parts(metric: Metric, weights: Array, totals: Array | Sparse) -> Array:
    """(R,) the metric under each of (R, C) weights of the clusters."""
    return np.concatenate([metric.statistic(weights[part] @ totals) for part in _parts(len(weights), totals)])


def _left_out(metric: Metric, totals: Array | Sparse) -> Array:
    """(C,) the metric without each of the clusters."""
    whole = totals.sum(axis=0)
    found = []
    for part in _parts(totals.shape[0], totals):
        own = totals[part]
        found.append(metric.statistic(whole - (own.toarray() if isinstance(own, sparse.csr_array) else own)))
    return np.concatenate(found)


def _parts(rows: int, totals: Array | Sparse) -> list[slice]:
    """So many rows at a time that memory grows with the number of totals, not with its square."""
    size = max(1, AT_ONCE // max(1, totals.shape[1]))
    return [slice(start, start + size) for start in range(0, rows, size)]


class Bootstraps:
    """One bootstrap per set of clusters, so that metrics of the same units share their resamples.

    Args:
        num_resamples: As of `ClusterBootstrap`.
        confidence: As of `ClusterBootstrap`.
        method: As of `ClusterBootstrap`.
        seed: As of `ClusterBootstrap`.
    """

    def __init__(self, num_resamples: int, confidence: float, method: str, seed: int) -> None:
        self.settings = (num_resamples, confidence, method, seed)
        self.made: dict[tuple[str, ...], ClusterBootstrap] = {}

    def of(self, clusters: tuple[str, ...]) -> ClusterBootstrap:
        """That of the units with these clusters."""
        if clusters not in self.made:
            self.made[clusters] = ClusterBootstrap(clusters, *self.settings)
        return self.made[clusters]


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact binomial interval (Clopper and Pearson 1934)."""
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(stats.beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(stats.beta.ppf(1 - tail, successes + 1, trials - successes))
    return low, high


def mcnemar_exact(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, float]:
    """Exact McNemar test of two arms on independent questions.

    Only for questions that are each a cluster of their own: with several questions a scene it rejects too often.

    Returns:
        Questions only the first arm has right, only the second has right, and the two-sided p.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_first, only_second = int((a & ~b).sum()), int((~a & b).sum())
    discordant = only_first + only_second
    p = 1.0 if discordant == 0 else float(stats.binomtest(only_first, discordant).pvalue)
    return only_first, only_second, p


def equivalence(estimate: Estimate, margin: float) -> float:
    """The p-value of two one-sided tests that a difference lies within a margin either way (Schuirmann 1987).

    Small where "it did no harm" is shown; a difference that is merely not significant shows nothing of the kind.

    Args:
        estimate: Of the paired difference; its bootstrap error is used, as normal. Where no cluster differs there is
            none: then the exact binomial chance of that stands in its place (under 0.05 from 299 clusters, for 0.01).
        margin: In the units of the metric.
    """
    if not estimate.error > 0:
        # No resample differs. Had a share `margin` of the clusters changed, that none is seen has this probability.
        return (1 - margin) ** estimate.clusters if abs(estimate.value) < margin else 1.0
    inside = stats.norm.sf([(margin - estimate.value) / estimate.error, (margin + estimate.value) / estimate.error])
    return float(inside.max())


def minimum_detectable_effect(error: float, power: float = 0.8, confidence: float = 0.95) -> float:
    """The smallest true difference that a test at this confidence finds with this power.

    Args:
        error: Standard error of the (paired) difference.
        power: Wanted power.
        confidence: One minus the level of the two-sided test.
    """
    return float(error * (stats.norm.ppf(1 - (1 - confidence) / 2) + stats.norm.ppf(power)))


def cluster_bootstrap(
    values: Sequence[float] | Array,
    clusters: Sequence[str],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    method: str = "bca",
) -> Estimate:
    """The mean of one number per unit with its interval; see `ClusterBootstrap`.

    Args:
        values: (N,) the numbers.
        clusters: (N,) the scene or picture of each.
        num_resamples: Resamples.
        seed: Of the draws.
        level: Coverage.
        method: "bca" or "percentile".

    Raises:
        ValueError: If there are no units, or not as many clusters as values.
    """
    return ClusterBootstrap(clusters, num_resamples, level, method, seed).estimate(mean_metric(values))


def paired_difference(
    a: Sequence[float] | Array,
    b: Sequence[float] | Array,
    clusters: Sequence[str],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    method: str = "bca",
) -> Estimate:
    """The mean of a - b over the same (N,) units with its interval; arguments as for `cluster_bootstrap`."""
    bootstrap = ClusterBootstrap(clusters, num_resamples, level, method, seed)
    return bootstrap.estimate(difference(mean_metric(a), mean_metric(b)))


def cluster_robust_error(values: Sequence[float] | Array, clusters: Sequence[str]) -> float:
    """Standard error of the mean of (N,) values; NaN with fewer than two clusters.

    The sandwich sqrt(C / (C - 1) * sum_c (sum_{i in c} (x_i - mean))^2) / N over C clusters (Liang and Zeger 1986,
    https://doi.org/10.1093/biomet/73.1.13).
    """
    array = np.asarray(values, dtype=np.float64)
    names, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    if len(names) < 2:
        return float("nan")
    sums = np.bincount(index, weights=array - array.mean())
    return float(np.sqrt(len(names) / (len(names) - 1) * (sums**2).sum()) / len(array))


def holm(pvalues: Sequence[float] | Array) -> list[float]:
    """Holm's (1979) step-down adjusted p-values in the order given, valid however the tests depend on each other."""
    raw = np.asarray(pvalues, dtype=np.float64)
    order = np.argsort(raw, kind="stable")
    stepped = np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1))
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()
