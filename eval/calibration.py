"""Whether a model is right as often as it is sure: expected calibration error, Brier score, reliability.

The probability of a choice is its share of the choices' probabilities, each taken as the whole answer; what a model
would rather have said than any of them does not count. Confidence is the probability of the most probable choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mllm_align_eval.items import Answer, Item
from mllm_align_eval.matrices import NUM_SCORES
from mllm_align_eval.statistics import Array, Metric, mean_metric, ratio

NUM_BINS = 10


class Bin(NamedTuple):
    """The questions of one bin: their mean confidence, the share that is right, and how many they are."""

    confidence: float
    accuracy: float
    n: int


def choice_probabilities(scores: Sequence[float] | Array) -> Array:
    """(K,) softmax of the choices' log-probabilities."""
    logps = np.asarray(scores, dtype=np.float64)
    weights = np.exp(logps - logps.max())
    return weights / weights.sum()


def calibration_metric(confidence: Sequence[float] | Array, right: Sequence[bool], num_bins: int = NUM_BINS) -> Metric:
    """Expected calibration error: the mean over questions of their bin's |accuracy - confidence|.

    As of Naeini et al. 2015 (https://doi.org/10.1609/aaai.v29i1.9602) and Guo et al. 2017
    (https://arxiv.org/abs/1706.04599), with bins of equal mass instead of equal width: confidences lie close together,
    and nearly empty bins are nearly all noise. A resample keeps the bins of the whole.

    Args:
        confidence: (N,) probability that was given to the chosen answer.
        right: (N,) whether it was right.
        num_bins: Bins, cut at quantiles of the confidence; questions of equal confidence share one.

    Raises:
        ValueError: If a confidence is not between 0 and 1.
    """
    sure, hit = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    columns = np.zeros((len(sure), num_bins + 1))
    columns[np.arange(len(sure)), _bins(sure, num_bins)] = hit - sure
    columns[:, -1] = 1

    def error(totals: Array) -> Array:
        return ratio(np.stack([np.abs(totals[..., :-1]).sum(axis=-1), totals[..., -1]], axis=-1))

    return Metric(columns, error, biased=True)


def brier_metric(probabilities: Iterable[Array], answers: Sequence[int]) -> Metric:
    """Half the summed squared error of a question's probabilities, in the mean: 0 is best, 1 is sure and wrong.

    Half of the score of Brier 1950 (Monthly Weather Review 78), so that of two choices it is (p - outcome)^2.

    Args:
        probabilities: N times (K,) the probability of each choice.
        answers: (N,) the index of the true one.
    """
    values = []
    for probability, answer in zip(probabilities, answers, strict=True):
        outcome = np.zeros(len(probability))
        outcome[answer] = 1
        values.append(((probability - outcome) ** 2).sum() / 2)
    return mean_metric(values)


def reliability(confidence: Sequence[float] | Array, right: Sequence[bool], num_bins: int = NUM_BINS) -> list[Bin]:
    """The bins of `calibration_metric` in ascending order, without the empty ones: a reliability diagram."""
    sure, hit = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    index = _bins(sure, num_bins)
    return [
        Bin(float(sure[index == number].mean()), float(hit[index == number].mean()), int((index == number).sum()))
        for number in np.unique(index)
    ]


def calibration_by_chance(confidence: Sequence[float] | Array, num_bins: int = NUM_BINS) -> float:
    """About the calibration error that a perfectly calibrated model of these confidences would show all the same.

    A bin of n independent questions misses its confidence by sqrt(2 / (pi n) * mean p (1 - p)) on average, by the
    normal approximation; more where questions share an image.
    """
    sure = np.asarray(confidence, dtype=np.float64)
    variances = np.bincount(_bins(sure, num_bins), weights=sure * (1 - sure), minlength=num_bins)
    return float(np.sqrt(2 / np.pi * variances).sum() / len(sure)) if len(sure) else float("nan")


def is_calibrated(item: Item, answer: Answer) -> bool:
    """Whether probabilities can be read off an answer; scores of captions are not those of an answer's words."""
    return item.is_closed and NUM_SCORES not in item.truth and len(answer.scores) == len(item.choices)


def confidences(answers: Iterable[Answer]) -> list[float]:
    """The probability of each answer's most probable choice."""
    return [float(choice_probabilities(answer.scores).max()) for answer in answers]


def _bins(confidence: Array, num_bins: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """(N,) the bin of each confidence."""
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("a confidence must be a probability, between 0 and 1")
    if not len(confidence):
        return np.zeros(0, dtype=np.intp)
    edges = np.quantile(confidence, np.arange(1, num_bins) / num_bins)
    return np.searchsorted(edges, confidence, side="right")
