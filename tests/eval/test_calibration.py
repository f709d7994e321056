import math

import numpy as np
import pytest
from PIL import Image

from mllm_align_eval.calibration import (
    brier_metric,
    calibration_by_chance,
    calibration_metric,
    choice_probabilities,
    confidences,
    is_calibrated,
    reliability,
)
from mllm_align_eval.items import Answer, Item, Picture
from mllm_align_eval.matrices import NUM_SCORES
from mllm_align_eval.measures import measures
from mllm_align_eval.statistics import ClusterBootstrap, Metric, difference


def drawn(seed, number, power=1.0):
    rng = np.random.default_rng(seed)
    confidence = rng.random(number)
    return confidence, rng.random(number) < confidence**power


def test_calibration_error_in_bins_of_equal_mass_by_plain_loops():
    confidence, right = drawn(8, 300, power=2.0)
    order, total = sorted(range(300), key=lambda i: confidence[i]), 0.0
    for b in range(10):
        inside = order[30 * b : 30 * b + 30]
        accuracy = sum(bool(right[i]) for i in inside) / 30
        total += 30 / 300 * abs(accuracy - sum(confidence[i] for i in inside) / 30)
    assert calibration_metric(confidence, right).value() == pytest.approx(total)


def test_questions_of_equal_confidence_share_a_bin_whatever_their_order():
    confidence = [0.6] * 50 + [0.9] * 50
    right = [True] * 20 + [False] * 30 + [True] * 45 + [False] * 5
    bins = reliability(confidence, right)
    assert [(b.n, b.accuracy) for b in bins] == [(50, pytest.approx(0.4)), (50, pytest.approx(0.9))]
    assert [b.confidence for b in bins] == pytest.approx([0.6, 0.9])
    assert calibration_metric(confidence, right).value() == pytest.approx((0.2 * 50 + 0.0 * 50) / 100)
    assert calibration_metric(confidence[::-1], right[::-1]).value() == pytest.approx(0.1)


def test_edges_and_what_is_refused():
    assert calibration_metric([1.0, 1.0], [True, True]).value() == 0
    assert math.isnan(calibration_metric([], []).value())
    assert math.isnan(calibration_by_chance([]))
    assert reliability([], []) == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibration_metric([1.2], [True])
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibration_metric([float("nan")], [True])


def test_bins_are_the_metric():
    confidence, right = drawn(3, 500)
    bins = reliability(confidence, right)
    assert sum(b.n for b in bins) == 500
    total = sum(b.n * abs(b.accuracy - b.confidence) for b in bins) / 500
    assert calibration_metric(confidence, right).value() == pytest.approx(total)


def test_interval_of_a_calibrated_model_is_not_pushed_away_by_the_resampling():
    metric = calibration_metric(*drawn(9, 200))
    names = [str(i) for i in range(200)]
    found = ClusterBootstrap(names).estimate(metric)
    unmoved = ClusterBootstrap(names, method="percentile").estimate(Metric(metric.columns, metric.statistic))
    assert found.low < found.value < found.high
    assert (unmoved.low + unmoved.high) / 2 > found.value + 0.01


def test_a_paired_difference_of_calibration_errors_is_corrected_too():
    first, second = calibration_metric(*drawn(1, 200)), calibration_metric(*drawn(2, 200, power=3.0))
    both = difference(first, second)
    assert both.biased
    found = ClusterBootstrap([str(i // 2) for i in range(200)]).estimate(both)
    assert found.value == pytest.approx(first.value() - second.value())
    assert found.low < found.value < found.high < 0


def test_what_a_calibrated_model_shows_by_chance():
    rng = np.random.default_rng(5)
    confidence = 0.5 + rng.random(400) / 2
    seen = [calibration_metric(confidence, rng.random(400) < confidence).value() for _ in range(300)]
    assert calibration_by_chance(confidence) == pytest.approx(np.mean(seen), rel=0.05)


def test_brier_score_by_plain_loops():
    rng = np.random.default_rng(6)
    probabilities = [rng.dirichlet(np.ones(number)) for number in (2, 3, 4, 2)]
    answers = [0, 2, 1, 1]
    total = 0.0
    for row, answer in zip(probabilities, answers, strict=True):
        total += sum((row[k] - (k == answer)) ** 2 for k in range(len(row))) / 2
    assert brier_metric(probabilities, answers).value() == pytest.approx(total / 4)
    # Of two choices it is the squared error of one probability.
    assert brier_metric([np.array([0.8, 0.2])], [0]).value() == pytest.approx(0.2**2)
    assert brier_metric([np.array([0.0, 1.0])], [0]).value() == 1


def test_probabilities_are_a_softmax_of_any_scale():
    assert choice_probabilities([-1000.0, -1000.0 - math.log(3)]) == pytest.approx([0.75, 0.25])
    assert confidences([Answer("a", "", None, False, scores=[0.0, -math.log(3)])]) == pytest.approx([0.75])


def ask(number, **more):
    return Item(
        id=f"pope/random/{number}",
        benchmark="pope",
        split="random",
        kind="existence",
        cluster=f"image{number // 2}",
        prompt="Is there a dog?",
        pictures=(Picture("p", lambda: Image.new("RGB", (2, 2))),),
        choices=("yes", "no"),
        answer="yes" if number % 2 else "no",
        **more,
    )


def test_measures_of_log_probabilities_alone():
    items = [ask(number) for number in range(4)]
    sure = [math.log(0.9), math.log(0.1)]
    given = [Answer(item.id, "yes", "yes", item.answer == "yes", sure) for item in items]
    found = measures(items, {("logprob", "right"): given, ("logprob", "other"): given})
    assert found["pope/random/ece"].metric.value() == pytest.approx(0.4)
    assert found["pope/random/brier"].metric.value() == pytest.approx((0.1**2 + 0.9**2) / 2)
    assert found["pope/random/ece"].clusters == ("image0", "image0", "image1", "image1")
    written = [Answer(item.id, "yes", "yes", item.answer == "yes") for item in items]
    assert not [name for name in measures(items, {("generate", "right"): written}) if "ece" in name]


def test_scores_of_captions_are_no_probabilities_of_answers():
    answer = Answer("pope/random/0", "yes", "yes", False, [0.0, -1.0])
    assert is_calibrated(ask(0), answer)
    assert not is_calibrated(ask(0, truth={NUM_SCORES: 2}), answer)
