import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from mllm_align_eval.detection import auc_metric
from mllm_align_eval.statistics import (
    ClusterBootstrap,
    Metric,
    clopper_pearson,
    cluster_bootstrap,
    cluster_robust_error,
    difference,
    holm,
    mcnemar_exact,
    mean_metric,
    minimum_detectable_effect,
    paired_difference,
)


def clustered(seed, num_clusters=40, size=3):
    rng = np.random.default_rng(seed)
    rate = rng.beta(2, 2, num_clusters)
    clusters = [f"c{number}" for number in range(num_clusters) for _ in range(size)]
    values = (rng.random((num_clusters, size)) < rate[:, None]).astype(float).ravel()
    return clusters, values


def test_value_and_percentile_interval_equal_a_plain_loop():
    clusters, values = clustered(1)
    bootstrap = ClusterBootstrap(clusters, 500, method="percentile", seed=3)
    names = sorted(set(clusters))
    draws = []
    for weights in bootstrap.weights:
        drawn = [
            value
            for name, times in zip(names, weights, strict=True)
            for _ in range(int(times))
            for cluster, value in zip(clusters, values, strict=True)
            if cluster == name
        ]
        draws.append(sum(drawn) / len(drawn))
    estimate = bootstrap.estimate(mean_metric(values))
    assert estimate.value == pytest.approx(values.mean())
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    assert estimate.n == 120
    assert estimate.clusters == 40
    assert estimate.error == pytest.approx(np.std(draws, ddof=1))


def test_every_resample_draws_as_many_clusters_as_there_are():
    bootstrap = ClusterBootstrap([f"c{number}" for number in range(7)], 300)
    assert (bootstrap.weights.sum(axis=1) == 7).all()


def test_bca_equals_scipy_on_single_questions():
    values = np.random.default_rng(0).exponential(size=30)
    ours = ClusterBootstrap([str(number) for number in range(30)], 20_000, seed=1).estimate(mean_metric(values))
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(2))
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.02)
    plain = ClusterBootstrap([str(number) for number in range(30)], 20_000, method="percentile").estimate(
        mean_metric(values)
    )
    assert ours.high > plain.high + 0.01, "a right-skewed sample moves the BCa interval to the right"


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_coverage_over_clusters_and_failure_over_questions(method):
    covered = naive = 0
    repeats = 300
    for seed in range(repeats):
        clusters, values = clustered(seed, num_clusters=60, size=6)
        metric = mean_metric(values)
        estimate = ClusterBootstrap(clusters, 400, method=method, seed=seed).estimate(metric)
        covered += estimate.low <= 0.5 <= estimate.high
        naive += abs(values.mean() - 0.5) <= 1.96 * values.std() / math.sqrt(len(values))
    assert 0.91 <= covered / repeats <= 0.985
    assert naive / repeats < 0.90, "questions taken as independent are too sure of themselves"


def test_difference_is_paired():
    clusters, before = clustered(2, num_clusters=80)
    after = before.copy()
    after[np.flatnonzero(before == 0)[:12]] = 1
    bootstrap = ClusterBootstrap(clusters, 1000)
    paired = bootstrap.estimate(difference(mean_metric(after), mean_metric(before)))
    assert paired.value == pytest.approx(12 / 240)
    assert paired.excludes_zero
    own = bootstrap.estimate(mean_metric(before))
    assert paired.high - paired.low < own.high - own.low
    same = bootstrap.estimate(difference(mean_metric(before), mean_metric(before)))
    assert (same.value, same.low, same.high, same.excludes_zero) == (0, 0, 0, False)


@pytest.mark.parametrize("value", [1.0, 0.0])
def test_no_spread_does_not_mean_certainty(value):
    estimate = ClusterBootstrap([f"c{number // 2}" for number in range(40)]).estimate(mean_metric([value] * 40))
    expected = 0.025 ** (1 / 20)
    assert estimate.low == pytest.approx(expected if value else 0.0)
    assert estimate.high == pytest.approx(1.0 if value else 1 - expected)


def test_clopper_pearson_inverts_the_binomial_test():
    low, high = clopper_pearson(7, 20)
    assert stats.binom.sf(6, 20, low) == pytest.approx(0.025)
    assert stats.binom.cdf(7, 20, high) == pytest.approx(0.025)


def test_undefined_in_some_resamples_is_left_out():
    columns = np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    metric = Metric(columns, lambda t: np.where(t[..., 1] > 0, t[..., 0], np.nan))
    estimate = ClusterBootstrap(["a", "b", "c"], 200).estimate(metric)
    assert math.isfinite(estimate.low)


def test_mcnemar_equals_the_binomial_sum():
    first = [True] * 9 + [False] * 3 + [True] * 20
    second = [False] * 9 + [True] * 3 + [True] * 20
    only_first, only_second, p = mcnemar_exact(first, second)
    assert (only_first, only_second) == (9, 3)
    assert p == pytest.approx(2 * sum(math.comb(12, k) for k in range(4)) / 2**12)
    assert mcnemar_exact([True], [True])[2] == 1.0


def test_minimum_detectable_effect_has_the_stated_power():
    error = 0.01
    effect = minimum_detectable_effect(error, power=0.8)
    draws = np.random.default_rng(0).normal(effect, error, 200_000)
    assert np.mean(np.abs(draws) > 1.959964 * error) == pytest.approx(0.8, abs=0.005)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ClusterBootstrap(["a"], method="normal"), "method"),
        (lambda: ClusterBootstrap([]), "nothing to resample"),
        (lambda: ClusterBootstrap(["a"]).estimate(mean_metric([1.0, 0.0])), "units"),
        (lambda: difference(mean_metric([1.0]), mean_metric([1.0, 0.0])), "same units"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_percentile_interval_is_that_of_every_possible_resample():
    # Three clusters have 27 equally likely resamples, so the exact bootstrap distribution can be written down.
    groups = {"a": [1.0, 0.0, 0.25], "b": [0.5], "c": [2.0, 3.0]}
    values = [v for group in groups.values() for v in group]
    clusters = [name for name, group in groups.items() for _ in group]
    means = []
    for drawn in product(groups, repeat=3):
        pooled = [v for name in drawn for v in groups[name]]
        means.append(sum(pooled) / len(pooled))
    found = cluster_bootstrap(values, clusters, num_resamples=40_000, level=0.6, method="percentile")
    ordered = sorted(means)
    assert found.value == pytest.approx(sum(values) / len(values))
    assert (found.low, found.high) == pytest.approx((ordered[5], ordered[21]))
    assert found.error == pytest.approx(np.std(means), rel=0.02)
    assert (found.n, found.clusters) == (6, 3)


def test_paired_difference_is_the_interval_of_the_differences():
    rng = np.random.default_rng(0)
    names, a = clustered(0, 40, 3)
    b = np.where(rng.random(len(a)) < 0.8, a, 1 - a)
    found = paired_difference(a, b, names, seed=5)
    same = cluster_bootstrap(a - b, names, seed=5)
    assert (found.value, found.low, found.high) == pytest.approx((same.value, same.low, same.high))
    back = paired_difference(b, a, names, seed=5, method="percentile")
    forth = paired_difference(a, b, names, seed=5, method="percentile")
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low))
    unpaired = math.hypot(cluster_bootstrap(a, names).error, cluster_bootstrap(b, names).error)
    assert found.error < 0.75 * unpaired


def test_seed_decides_and_order_of_units_does_not():
    names, values = clustered(2, 30, 4)
    first = cluster_bootstrap(values, names, seed=1)
    assert first == cluster_bootstrap(values, names, seed=1)
    assert first != cluster_bootstrap(values, names, seed=2)
    assert first.low < first.value < first.high
    order = np.random.default_rng(0).permutation(len(values))
    shuffled = cluster_bootstrap(values[order], [names[i] for i in order], seed=1)
    assert (shuffled.low, shuffled.high) == pytest.approx((first.low, first.high))


def test_one_cluster_has_a_value_and_no_interval():
    found = cluster_bootstrap([1.0, 1.0, 0.0], ["scene"] * 3)
    assert found.value == pytest.approx(2 / 3)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert not cluster_bootstrap([1.0, 1.0], ["scene"] * 2).excludes_zero
    assert math.isnan(cluster_robust_error([1.0, 0.0], ["scene"] * 2))


def test_auc_draws_are_those_of_resampled_questions():
    rng = np.random.default_rng(6)
    scores, truth = rng.integers(0, 4, size=12).astype(float), np.arange(12) % 2 == 0
    clusters = np.array(["a", "b", "c"]).repeat(4)
    bootstrap = ClusterBootstrap(list(clusters), num_resamples=20, method="percentile")
    metric = auc_metric(scores, truth)
    expected = []
    for weights in bootstrap.weights:
        index = [i for c, w in enumerate(weights) for _ in range(int(w)) for i in range(4 * c, 4 * c + 4)]
        expected.append(auc_metric(scores[index], truth[index]).value())
    found = bootstrap.estimate(metric)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(expected, (0.025, 0.975))))
    assert found.error == pytest.approx(np.std(expected, ddof=1))


def test_cluster_robust_error_by_loops_and_in_closed_form():
    names, values = clustered(10, 25, 4)
    mean, squares = sum(values) / 100, 0.0
    for name in set(names):
        squares += sum(v - mean for v, n in zip(values, names, strict=True) if n == name) ** 2
    assert cluster_robust_error(values, names) == pytest.approx(math.sqrt(25 / 24 * squares) / 100)
    own = [str(i) for i in range(100)]
    assert cluster_robust_error(values, own) == pytest.approx(values.std(ddof=1) / 10)
    # Each value four times in one cluster is no more information than once.
    repeated = np.array(values[:25]).repeat(4)
    assert cluster_robust_error(repeated, names) == pytest.approx(values[:25].std(ddof=1) / 5)


def test_bootstrap_error_approaches_the_sandwich():
    names, values = clustered(11, 200, 3)
    assert cluster_bootstrap(values, names).error == pytest.approx(cluster_robust_error(values, names), rel=0.06)


def test_holm_steps_down():
    # Worked by hand: .01*4, max(.04, .02*3), max(.06, .03*2), max(.06, .5*1).
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
