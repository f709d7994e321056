"""The mean of numbers between 0 and 1, with an interval that knows that rows come in clusters."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Share(NamedTuple):
    """A share with its interval.

    Attributes:
        value: NaN where there is nothing.
        low: Lower bound; NaN where there are fewer than two clusters, which show nothing about others.
        high: Upper bound.
        rows: How many numbers it is the mean of.
        clusters: How many are independent.
    """

    value: float
    low: float
    high: float
    rows: int
    clusters: int

    def __str__(self) -> str:
        """As in `71 % (68-74)`."""
        if not self.rows:
            return "-"
        value, low, high = (math.nan if math.isnan(x) else 100 * x for x in self[:3])
        return f"{value:.0f} %" if math.isnan(low) else f"{value:.0f} % ({low:.0f}-{high:.0f})"


def share(
    values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable], folds: int = 0, confidence: float = 0.95
) -> Share:
    """The mean and Wilson's interval for as many independent rows as the spread between clusters is worth.

    Where every row is a cluster of its own this is Wilson's interval (1927); else n is replaced by the effective
    n = p (1 - p) / var, var from the sums of the clusters, as for surveys (Korn and Graubard 1998). It agrees with a
    bootstrap over clusters, needs no draws, and is never empty at 0 and 1.

    Numbers of a cross-validation vary more than that, because what is learned on one fold is tested on another and
    the other way round; their variance is taken as 1 + k / (k - 1) times as large (Nadeau and Bengio 2003,
    https://doi.org/10.1023/A:1024068626366), 2.25 for five folds.

    Args:
        values: (N,) between 0 and 1; 0.5 for a tie.
        clusters: (N,) what each belongs to.
        folds: Of the cross-validation that gave the numbers; 0 where nothing was learned.
        confidence: Coverage.
    """
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return Share(math.nan, math.nan, math.nan, 0, 0)
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
    count, mean = len(numbers), float(array.mean())
    if count < 2:
        return Share(mean, math.nan, math.nan, len(array), count)
    sums = np.bincount(index, array - mean, count)
    variance = count / (count - 1) * float(sums @ sums) / len(array) ** 2
    effective = min(len(array), mean * (1 - mean) / variance) if variance > 1e-15 else count
    effective /= 1 + folds / (folds - 1) if folds > 1 else 1
    z = float(stats.t.ppf((1 + confidence) / 2, count - 1)) if count < len(array) else _normal(confidence)
    middle = (mean + z**2 / (2 * effective)) / (1 + z**2 / effective)
    half = z / (1 + z**2 / effective) * math.sqrt(mean * (1 - mean) / effective + z**2 / (4 * effective**2))
    return Share(mean, max(0.0, middle - half), min(1.0, middle + half), len(array), count)


def _normal(confidence: float) -> float:
    return float(stats.norm.ppf((1 + confidence) / 2))
