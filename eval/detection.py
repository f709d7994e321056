"""Yes/no answers as signal detection: sight (d', AUC) apart from the threshold (criterion, yes-ratio)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse, stats

from mllm_align_eval.statistics import Array, Metric, difference, ratio


def _yes_columns(says_yes: Sequence[bool], is_yes: Sequence[bool]) -> Array:
    """(N, 4): hit, signal, false alarm, noise."""
    says, truth = np.asarray(says_yes, dtype=np.float64), np.asarray(is_yes, dtype=np.float64)
    return np.stack([says * truth, truth, says * (1 - truth), 1 - truth], axis=1)


def _z_rates(totals: Array) -> tuple[Array, Array]:
    """z of hit and false-alarm rate, log-linear: half a case is added to each cell (Hautus 1995)."""
    hits, signals, alarms, noise = (totals[..., column] for column in range(4))
    return stats.norm.ppf((hits + 0.5) / (signals + 1)), stats.norm.ppf((alarms + 0.5) / (noise + 1))


def _dprime(totals: Array) -> Array:
    hit, alarm = _z_rates(totals)
    return hit - alarm


def _criterion(totals: Array) -> Array:
    hit, alarm = _z_rates(totals)
    return -(hit + alarm) / 2


def dprime_metric(says_yes: Sequence[bool], is_yes: Sequence[bool]) -> Metric:
    """d' = z(hit rate) - z(false-alarm rate), log-linear correction (Hautus 1995, doi:10.3758/BF03203619)."""
    return Metric(_yes_columns(says_yes, is_yes), _dprime)


def criterion_metric(says_yes: Sequence[bool], is_yes: Sequence[bool]) -> Metric:
    """c = -(z(hit rate) + z(false-alarm rate)) / 2; negative for a model that leans to yes."""
    return Metric(_yes_columns(says_yes, is_yes), _criterion)


def criterion_shift_metric(after: Metric, before: Metric) -> Metric:
    """The accuracy that moving the criterion alone would have gained, with the sensitivity left as it was.

    Of two models with evidence of equal variance (Green and Swets 1966): the accuracy at the d' of `before` and the
    criterion of `after`, minus that at both of `before`. What a gain has beyond it is sight.

    Args:
        after: `criterion_metric` or `dprime_metric` of one model.
        before: The same of another model, on the same questions.
    """
    pair = difference(after, before)

    def gained(totals: Array) -> Array:
        now, then = totals[..., :4], totals[..., 4:]
        yes = ratio(np.stack([then[..., 1], then[..., 1] + then[..., 3]], axis=-1))
        return _accuracy(_dprime(then), _criterion(now), yes) - _accuracy(_dprime(then), _criterion(then), yes)

    return Metric(pair.columns, gained)


def _accuracy(dprime: Array, criterion: Array, yes: Array) -> Array:
    """Of evidence N(+-d'/2, 1) above or below c, where a share `yes` of the questions has the answer yes."""
    return yes * stats.norm.cdf(dprime / 2 - criterion) + (1 - yes) * stats.norm.cdf(dprime / 2 + criterion)


def auc_metric(log_odds: Sequence[float], is_yes: Sequence[bool]) -> Metric:
    """Area under the ROC curve of the yes-minus-no log-odds; ties count one half.

    Args:
        log_odds: (N,) log p(yes) - log p(no).
        is_yes: (N,) the truth.
    """
    scores, truth = np.asarray(log_odds, dtype=np.float64), np.asarray(is_yes, dtype=bool)
    levels, level = np.unique(scores, return_inverse=True)
    # Each question adds to one of two totals per level, and where no scores are equal each has a level of its own.
    place = (np.arange(len(scores)), 2 * level + truth)
    columns = sparse.csr_array((np.ones(len(scores)), place), (len(scores), 2 * len(levels)))

    def area(totals: Array) -> Array:
        negative, positive = totals[..., 0::2], totals[..., 1::2]
        below = np.cumsum(negative, axis=-1) - negative / 2
        pairs = positive.sum(axis=-1) * negative.sum(axis=-1)
        wins = (positive * below).sum(axis=-1)
        return np.where(pairs > 0, wins / np.where(pairs > 0, pairs, 1), np.nan)

    return Metric(columns, area)


def prior_index_metric(wrong: Sequence[bool], expected: Sequence[bool], among: Sequence[bool]) -> Metric:
    """How much more often an error is made where the prior expects it than where it does not.

    With `among` the questions whose truth is no, and `expected` where the prior says yes, this is the hallucination
    index FPR(prior yes) - FPR(prior no); with truth yes and prior no it is the omission index.

    Args:
        wrong: (N,) whether the answer is wrong.
        expected: (N,) whether the prior speaks for that error.
        among: (N,) the questions that count.
    """
    error, prior, counted = (np.asarray(values, dtype=np.float64) for values in (wrong, expected, among))
    columns = [error * prior, prior, error * (1 - prior), 1 - prior]
    return Metric(np.stack([column * counted for column in columns], axis=1), _index)


def _index(totals: Array) -> Array:
    return ratio(totals[..., :2]) - ratio(totals[..., 2:])
