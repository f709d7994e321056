from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from mllm_align.contract import Signals, View
from mllm_align.objectives import NextToken, Weighted
from mllm_align.objectives.dpo import DPO
from mllm_align.objectives.dpo_losses import VARIANTS
from ratios import at, ratios_of

CHOSEN, REJECTED = View("image", "chosen"), View("image", "rejected")
SETTINGS = [
    ("sigmoid", 0.0),
    ("sigmoid", 0.1),
    ("robust", 0.0),
    ("robust", 0.1),
    ("robust", 0.4),
    ("hinge", 0.0),
    ("ipo", 0.0),
    ("sigmoid_norm", 0.0),
    ("exo_pair", 1e-3),
    ("exo_pair", 0.2),
    ("nca_pair", 0.0),
    ("bco_pair", 0.0),
    ("sppo_hard", 0.0),
    ("apo_zero", 0.0),
    ("apo_down", 0.0),
    ("discopop", 0.0),
]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def exo(x: float, e: float) -> float:
    """KL divergence of the model's pair of probabilities from the labels'."""
    return s(x) * math.log(s(x) / (1 - e)) + s(-x) * math.log(s(-x) / e)


def discopop(x: float) -> float:
    m = s(x / 0.05)
    return -(1 - m) * log_sigmoid(x) + m * math.exp(-x)


def by_hand(loss_type: str, c: float, r: float, n_c: int, n_r: int, beta: float, e: float) -> float:
    """The loss of one row in plain floats, from the published formulas."""
    x = beta * (c - r)
    if loss_type == "sigmoid":
        return -(1 - e) * log_sigmoid(x) - e * log_sigmoid(-x)
    if loss_type == "robust":
        return (-(1 - e) * log_sigmoid(x) + e * log_sigmoid(-x)) / (1 - 2 * e)
    if loss_type == "hinge":
        return max(0.0, 1 - x)
    per_token = c / n_c - r / n_r
    return {
        "ipo": lambda: (per_token - 1 / (2 * beta)) ** 2,
        "sigmoid_norm": lambda: -log_sigmoid(beta * per_token),
        "exo_pair": lambda: exo(x, e),
        "nca_pair": lambda: -log_sigmoid(beta * c) - log_sigmoid(-beta * c) / 2 - log_sigmoid(-beta * r) / 2,
        "bco_pair": lambda: -log_sigmoid(beta * c) - log_sigmoid(-beta * r),
        "sppo_hard": lambda: (c - 1 / (2 * beta)) ** 2 + (r + 1 / (2 * beta)) ** 2,
        "apo_zero": lambda: 1 - s(beta * c) + s(beta * r),
        "apo_down": lambda: s(beta * c) + 1 - s(x),
        "discopop": lambda: discopop(x),
    }[loss_type]()


def signals_of(chosen: float, rejected: float, tokens: int = 6) -> Signals:
    values = {CHOSEN: chosen, REJECTED: rejected}
    return Signals(
        {view: torch.tensor([value], dtype=torch.float64, requires_grad=True) for view, value in values.items()},
        {view: torch.tensor([tokens]) for view in values},
    )


def loss_at(chosen: float, rejected: float, objective: DPO, tokens: int = 6) -> float:
    """The loss where the log-ratios have these values."""
    return objective(signals_of(chosen, rejected, tokens), signals_of(0.0, 0.0, tokens)).loss.item()


@pytest.mark.parametrize(("loss_type", "smoothing"), SETTINGS)
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_equals_a_loop_over_rows(
    loss_type: str, smoothing: float, beta: float, make_signals: Callable[..., Signals]
) -> None:
    objective = DPO(beta=beta, loss_type=loss_type, label_smoothing=smoothing)
    policy, reference = make_signals(objective.needs, rows=8), make_signals(objective.needs, rows=8, value_seed=1)
    total = 0.0
    for row in range(8):
        c, r = (policy.logps[view][row].item() - reference.logps[view][row].item() for view in (CHOSEN, REJECTED))
        n_c, n_r = (int(policy.num_tokens[view][row]) for view in (CHOSEN, REJECTED))
        total += by_hand(loss_type, c, r, n_c, n_r, beta, smoothing)
    outcome = objective(policy, reference)
    assert outcome.loss.item() == pytest.approx(total / 8, abs=1e-6)
    assert outcome.terms[0].sum.item() == pytest.approx(total, abs=1e-6)
    assert int(outcome.terms[0].count) == 8


@pytest.mark.parametrize(
    ("objective", "wanted"),
    [
        (DPO(), 0.693147),
        (DPO(label_smoothing=0.2), 0.693147),
        (DPO(loss_type="robust"), 0.693147),
        (DPO(loss_type="robust", label_smoothing=0.1), 0.693147),
        (DPO(loss_type="robust", label_smoothing=0.45), 0.693147),
        (DPO(loss_type="hinge"), 1.0),
        (DPO(loss_type="ipo"), 25.0),
        (DPO(loss_type="sigmoid_norm"), 0.693147),
        (DPO(loss_type="exo_pair", label_smoothing=1e-3), 2.761231),
        (DPO(loss_type="nca_pair"), 1.386294),
        (DPO(loss_type="bco_pair"), 1.386294),
        (DPO(loss_type="sppo_hard"), 50.0),
        (DPO(loss_type="apo_zero"), 1.0),
        (DPO(loss_type="apo_down"), 1.0),
        (DPO(loss_type="discopop"), 0.846574),
    ],
    ids=repr,
)
def test_value_at_step_zero(objective: DPO, wanted: float) -> None:
    start = signals_of(-7.5, -3.25)
    assert objective(start, start).loss.item() == pytest.approx(wanted, abs=1e-6)


def test_gradient_at_step_zero() -> None:
    policy = signals_of(-7.5, -3.25)
    DPO()(policy, signals_of(-7.5, -3.25)).loss.backward()
    assert policy.logps[CHOSEN].grad.item() == pytest.approx(-0.05, abs=1e-9)
    assert policy.logps[REJECTED].grad.item() == pytest.approx(0.05, abs=1e-9)


@pytest.mark.parametrize(
    ("objective", "wanted"),
    [
        (DPO(), 0.554355),
        (DPO(label_smoothing=0.1), 0.584355),
        (DPO(loss_type="robust", label_smoothing=0.1), 0.516855),
        (DPO(loss_type="hinge"), 0.7),
        (DPO(loss_type="ipo"), 20.25),
    ],
    ids=repr,
)
def test_value_at_a_margin_of_three(objective: DPO, wanted: float) -> None:
    assert loss_at(1.0, -2.0, objective, tokens=6) == pytest.approx(wanted, abs=1e-6)
    assert loss_at(4.0, 1.0, objective, tokens=6) == pytest.approx(wanted, abs=1e-6)


def simpo_by_hand(policy: Signals, row: int, beta: float, gamma: float, e: float) -> float:
    chosen, rejected = (policy.logps[v][row].item() / int(policy.num_tokens[v][row]) for v in (CHOSEN, REJECTED))
    x = beta * (chosen - rejected) - gamma
    return -(1 - e) * log_sigmoid(x) - e * log_sigmoid(-x)


@pytest.mark.parametrize(("beta", "gamma", "e"), [(2.0, 0.5, 0.0), (2.5, 1.2, 0.1), (0.1, 0.0, 0.0)])
def test_simpo_equals_a_loop_over_rows(
    beta: float, gamma: float, e: float, make_signals: Callable[..., Signals]
) -> None:
    objective = DPO(loss_type="simpo", beta=beta, gamma=gamma, label_smoothing=e)
    policy = make_signals(objective.needs, rows=8)
    total = sum(simpo_by_hand(policy, row, beta, gamma, e) for row in range(8))
    outcome = objective(policy, None)
    assert outcome.terms[0].sum.item() == pytest.approx(total, abs=1e-6)
    assert (outcome.terms[0].name, int(outcome.terms[0].count)) == ("dpo", 8)


def test_simpo_at_equal_averages_wants_no_reference_and_feels_no_length() -> None:
    objective = DPO(loss_type="simpo", beta=2.0)
    assert not objective.needs.reference
    assert DPO().needs.reference
    loss, gradient = at(objective, {CHOSEN: -6.0, REJECTED: -6.0}, tokens=4)
    assert loss == pytest.approx(0.974077, abs=1e-6)
    assert gradient[CHOSEN] < 0 < gradient[REJECTED]
    assert at(objective, {CHOSEN: -3.0, REJECTED: -9.0}, tokens=6)[0] == pytest.approx(
        at(objective, {CHOSEN: -6.0, REJECTED: -18.0}, tokens=12)[0]
    )


def test_simpo_rewards_are_mean_log_probs() -> None:
    metrics = DPO(loss_type="simpo", beta=2.0)(signals_of(-3.0, -6.0, tokens=6), None).metrics
    assert metrics["rewards/chosen"].item() == pytest.approx(-1.0)
    assert metrics["rewards/margins"].item() == pytest.approx(1.0)
    assert metrics["logps/chosen"].item() == -3.0


def test_simpo_beside_a_part_with_a_reference(make_signals: Callable[..., Signals]) -> None:
    simpo = DPO(loss_type="simpo", beta=2.0)
    both = Weighted((simpo, 1.0, "instructions"), (DPO(), 1.0, "pairs"), (NextToken(matched=False), 1.0))
    assert not both.needs_for("instructions").reference
    policy, reference = make_signals(both.needs), make_signals(both.needs, value_seed=1)
    outcome = both(policy, reference)
    torch.testing.assert_close(outcome.terms[0].sum, simpo(policy.select([1, 3, 5]), None).terms[0].sum)


def test_sums_over_rows_are_what_the_ratios_say(make_signals: Callable[..., Signals]) -> None:
    policy, reference = make_signals(DPO().needs), make_signals(DPO().needs, value_seed=1)
    metrics = DPO(beta=0.2)(policy, reference).metrics
    wanted = [0.2 * ratios_of(policy, reference, row)[CHOSEN] for row in range(6)]
    assert metrics["rewards/chosen"].tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("loss_type", [name for name in VARIANTS if name != "simpo"])
def test_rewards_are_of_sums_whatever_the_loss_averages(loss_type: str) -> None:
    objective = DPO(beta=0.2, loss_type=loss_type, label_smoothing=0.1 if loss_type == "exo_pair" else 0.0)
    metrics = objective(signals_of(-3.0, -5.0), signals_of(-4.0, -3.5)).metrics
    assert metrics["rewards/chosen"].item() == pytest.approx(0.2)
    assert metrics["rewards/rejected"].item() == pytest.approx(-0.3)


@pytest.mark.parametrize("loss_type", ["ipo", "sigmoid_norm"])
def test_length_averaged_losses_do_not_feel_every_token_twice(loss_type: str) -> None:
    objective = DPO(loss_type=loss_type)
    once, twice = loss_at(1.0, -2.0, objective, tokens=6), loss_at(2.0, -4.0, objective, tokens=12)
    assert once == pytest.approx(twice, abs=1e-12)


def test_summed_loss_feels_every_token_twice() -> None:
    assert loss_at(2.0, -4.0, DPO(), tokens=12) == pytest.approx(loss_at(1.0, -2.0, DPO(beta=0.2)), abs=1e-12)
    assert loss_at(2.0, -4.0, DPO(), tokens=12) != pytest.approx(loss_at(1.0, -2.0, DPO()), abs=1e-3)


@pytest.mark.parametrize(("loss_type", "smoothing"), SETTINGS)
def test_a_constant_in_policy_and_reference_alike_changes_nothing(loss_type: str, smoothing: float) -> None:
    objective = DPO(loss_type=loss_type, label_smoothing=smoothing)
    before = objective(signals_of(-3.0, -5.0), signals_of(-4.0, -3.5)).loss.item()
    after = objective(signals_of(-3.0 - 9.0, -5.0 + 2.0), signals_of(-4.0 - 9.0, -3.5 + 2.0)).loss.item()
    assert before == pytest.approx(after, abs=1e-9)


def test_metrics_are_those_of_trl() -> None:
    metrics = DPO(beta=0.2)(signals_of(-3.0, -5.0), signals_of(-4.0, -3.5)).metrics
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "rewards/chosen": 0.2,
            "rewards/rejected": -0.3,
            "rewards/margins": 0.5,
            "rewards/accuracies": 1.0,
            "logps/chosen": -3.0,
            "logps/rejected": -5.0,
        }
    )
    tied = DPO()(signals_of(-3.0, -5.0), signals_of(-3.0, -5.0)).metrics
    assert tied["rewards/accuracies"].item() == 0.0


def test_a_row_without_a_rejected_response_is_left_out(make_signals: Callable[..., Signals]) -> None:
    policy, reference = make_signals(DPO().needs, rows=3), make_signals(DPO().needs, rows=3, value_seed=1)
    for signals in (policy, reference):
        signals.num_tokens[REJECTED][1] = 0
    for loss_type in ("sigmoid", "ipo"):
        objective = DPO(loss_type=loss_type)
        outcome = objective(policy, reference)
        assert int(outcome.terms[0].count) == 2
        torch.testing.assert_close(outcome.loss, objective(policy.select([0, 2]), reference.select([0, 2])).loss)
        assert all(value.shape == (2,) for value in outcome.metrics.values())
        outcome.loss.backward()
        assert torch.isfinite(policy.logps[REJECTED].grad).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0}, "beta must be a number above 0"),
        ({"beta": "0.1"}, "beta must be a number above 0, got '0.1'"),
        ({"loss_type": "sigmiod"}, "loss_type must be one of sigmoid, robust"),
        ({"label_smoothing": 0.5}, r"label_smoothing must be in \[0, 0.5\)"),
        ({"label_smoothing": -0.1}, "label_smoothing must be in"),
        ({"label_smoothing": "0.1"}, "label_smoothing must be in"),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, "'ipo' reads no label_smoothing; it is for sigmoid, robust"),
        ({"loss_type": "exo_pair"}, "'exo_pair' needs a label_smoothing above 0"),
        ({"gamma": 0.3}, "'sigmoid' reads no gamma; it is for simpo"),
        ({"gamma": -0.3, "loss_type": "simpo"}, r"gamma must be in \[0, inf\)"),
        ({"discopop_tau": 0.1}, "'sigmoid' reads no discopop_tau; it is for discopop"),
        ({"discopop_tau": 0, "loss_type": "discopop"}, "discopop_tau must be a number above 0"),
        ({"discopop_tau": 1.5, "loss_type": "discopop"}, "discopop_tau must be at most 1, got 1.5"),
        ({"loss_type": "aot"}, "loss_type must be one of sigmoid.*simpo, got 'aot'"),
    ],
)
def test_refuses_options_without_a_meaning(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DPO(**options)
