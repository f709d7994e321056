import tracemalloc

import numpy as np
import pytest
from scipy import stats

from mllm_align_eval.comparing import differences
from mllm_align_eval.detection import (
    auc_metric,
    criterion_metric,
    criterion_shift_metric,
    dprime_metric,
    prior_index_metric,
)
from mllm_align_eval.metrics import Measure
from mllm_align_eval.statistics import Bootstraps, ClusterBootstrap, Metric, difference


def test_dprime_and_criterion_by_hand():
    says = [True] * 8 + [False] * 2 + [True] * 3 + [False] * 7
    truth = [True] * 10 + [False] * 10
    hit, alarm = stats.norm.ppf(8.5 / 11), stats.norm.ppf(3.5 / 11)
    assert dprime_metric(says, truth).value() == pytest.approx(hit - alarm)
    assert criterion_metric(says, truth).value() == pytest.approx(-(hit + alarm) / 2)


def test_perfect_answers_stay_finite():
    truth = [True] * 50 + [False] * 50
    assert dprime_metric(truth, truth).value() == pytest.approx(2 * stats.norm.ppf(50.5 / 51))


def test_a_shift_of_the_threshold_moves_the_criterion_and_not_dprime():
    rng = np.random.default_rng(0)
    truth = np.repeat([True, False], 20_000)
    evidence = rng.normal(size=40_000) + 1.5 * truth
    strict, lax = evidence > 1.2, evidence > 0.2
    assert dprime_metric(strict, truth).value() == pytest.approx(1.5, abs=0.05)
    assert dprime_metric(lax, truth).value() == pytest.approx(1.5, abs=0.05)
    assert criterion_metric(strict, truth).value() == pytest.approx(0.45, abs=0.03)
    assert criterion_metric(lax, truth).value() == pytest.approx(-0.55, abs=0.03)


def said(hits, alarms, num=1000):
    """Answers with these rates of yes to `num` questions with the answer yes and as many with no."""
    says = [number < round(rate * num) for rate in (hits, alarms) for number in range(num)]
    return says, [True] * num + [False] * num


def test_the_published_gain_that_is_mostly_a_shift_of_the_criterion():
    # HA-DPO on adversarial POPE: d' 1.81 to 1.84, c -0.41 to -0.24. Moving c alone gives 81.1 of 81.5 %, from 79.8 %.
    phi = stats.norm.cdf
    before, truth = said(phi(1.81 / 2 + 0.41), phi(-1.81 / 2 + 0.41))
    after, _ = said(phi(1.84 / 2 + 0.24), phi(-1.84 / 2 + 0.24))
    gained = criterion_shift_metric(criterion_metric(after, truth), criterion_metric(before, truth)).value()
    assert gained == pytest.approx(0.811 - 0.798, abs=0.002)
    assert np.mean(np.equal(after, truth)) - np.mean(np.equal(before, truth)) == pytest.approx(0.017, abs=0.002)


def test_a_gain_of_sight_alone_is_not_explained_by_the_criterion():
    phi = stats.norm.cdf
    before, truth = said(phi(0.5), phi(-0.5))
    after, _ = said(phi(1.0), phi(-1.0))
    metric = criterion_shift_metric(dprime_metric(after, truth), dprime_metric(before, truth))
    assert metric.value() == pytest.approx(0, abs=1e-3)
    assert criterion_shift_metric(dprime_metric(after, truth), dprime_metric(after, truth)).value() == 0


def test_auc_counts_pairs_with_ties_as_half():
    rng = np.random.default_rng(1)
    scores, truth = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.4
    wins = [
        1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
        for i in range(60)
        for j in range(60)
        if truth[i] and not truth[j]
    ]
    assert auc_metric(scores, truth).value() == pytest.approx(np.mean(wins))


def test_auc_of_a_resample_equals_auc_of_the_drawn_questions():
    rng = np.random.default_rng(2)
    scores, truth = rng.normal(size=20), rng.random(20) < 0.5
    clusters = [f"c{number // 2}" for number in range(20)]
    bootstrap = ClusterBootstrap(clusters, 3)
    metric = auc_metric(scores, truth)
    for weights in bootstrap.weights:
        times = weights[bootstrap.index].astype(int)
        drawn = auc_metric(np.repeat(scores, times), np.repeat(truth, times)).value()
        assert metric.statistic(weights[bootstrap.index] @ metric.columns) == pytest.approx(drawn)


def dense_auc(scores, truth):
    """The same metric from a dense (N, 2 * levels) table, by loops over questions and levels."""
    levels = sorted(set(scores))
    columns = np.zeros((len(scores), 2 * len(levels)))
    for number, (score, is_yes) in enumerate(zip(scores, truth, strict=True)):
        columns[number, 2 * levels.index(score) + bool(is_yes)] = 1

    def area(totals):
        found = []
        for row in np.atleast_2d(totals):
            wins, below = 0.0, 0.0
            for level in range(len(levels)):
                no, yes = row[2 * level], row[2 * level + 1]
                wins += yes * (below + no / 2)
                below += no
            pairs = row[0::2].sum() * row[1::2].sum()
            found.append(wins / pairs if pairs else np.nan)
        return np.array(found).reshape(totals.shape[:-1])

    return Metric(columns, area)


@pytest.mark.parametrize("method", ["bca", "percentile"])
@pytest.mark.parametrize("decimals", [1, 9])
def test_auc_and_its_difference_are_those_of_a_dense_table(method, decimals, monkeypatch):
    """With ties and without, with clusters of unequal size, one of which has no yes; in several parts."""
    rng = np.random.default_rng(5)
    truth = rng.random(70) < 0.4
    clusters = [f"c{int(number**0.7)}" for number in range(70)]
    truth[:3] = False
    scores = [np.round(rng.normal(size=70) + shift * truth, decimals) for shift in (1.0, 0.3)]
    monkeypatch.setattr("mllm_align_eval.statistics.AT_ONCE", 300)
    bootstrap = ClusterBootstrap(clusters, 150, method=method)
    ours, dense = ([make(each, truth) for each in scores] for make in (auc_metric, dense_auc))
    ours.append(difference(*ours))
    dense.append(difference(*dense))
    for one, other in zip(ours, dense, strict=True):
        found, expected = bootstrap.estimate(one), bootstrap.estimate(other)
        for name in ("value", "low", "high", "error", "p"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-12, rel=0), name
        assert (found.n, found.clusters) == (expected.n, expected.clusters)


def test_moved_questions_are_counted_as_with_a_dense_table():
    rng = np.random.default_rng(6)
    truth = np.arange(40) % 2 == 0
    clusters = tuple(f"c{number // 4}" for number in range(40))
    first = rng.permutation(40).astype(float)
    second = first.copy()
    second[[0, 1, 5]] = second[[1, 5, 0]]  # in two clusters of ten
    both = [
        {"x/auc": Measure(make(each, truth), clusters)} for make in (auc_metric, dense_auc) for each in (first, second)
    ]
    bootstrap = Bootstraps(100, 0.95, "bca", 0)
    found, expected = (differences(*pair, bootstrap, 0.01)["x/auc"] for pair in (both[:2], both[2:]))
    assert found == expected
    assert found["p"] >= 0.5


def test_memory_of_auc_does_not_grow_with_the_square_of_the_questions():
    """A dense table of 6,000 questions alone would take 576 MB."""
    rng = np.random.default_rng(7)
    scores, truth = rng.normal(size=6000), rng.random(6000) < 0.5
    bootstrap = ClusterBootstrap([f"c{number // 6}" for number in range(6000)], 200)
    tracemalloc.start()
    bootstrap.estimate(difference(auc_metric(scores, truth), auc_metric(-scores, truth)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6


def test_hallucination_index_is_a_difference_of_rates():
    wrong = [True, True, False, True, False, False, False, True]
    prior = [True, True, True, True, False, False, False, False]
    among = [True, True, True, False, True, True, True, False]
    assert prior_index_metric(wrong, prior, among).value() == pytest.approx(2 / 3 - 0 / 3)


def test_auc_without_one_of_the_classes_is_undefined():
    assert np.isnan(auc_metric([0.0, 1.0], [True, True]).value())
