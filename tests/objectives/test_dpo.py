from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from mllm_align.contract import Signals, View
from mllm_align.objectives.dpo import DPO, dpo_loss

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
]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def by_hand(loss_type: str, c: float, r: float, n_c: int, n_r: int, beta: float, e: float) -> float:
    """The loss of one row in plain floats, from the published formulas."""
    x = beta * (c - r)
    if loss_type == "sigmoid":
        return -(1 - e) * log_sigmoid(x) - e * log_sigmoid(-x)
    if loss_type == "robust":
        return (-(1 - e) * log_sigmoid(x) + e * log_sigmoid(-x)) / (1 - 2 * e)
    if loss_type == "hinge":
        return max(0.0, 1 - x)
    if loss_type == "ipo":
        return (c / n_c - r / n_r - 1 / (2 * beta)) ** 2
    return -log_sigmoid(beta * (c / n_c - r / n_r))


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


def test_ipo_on_sums_is_another_number() -> None:
    margin = torch.tensor(3.0, dtype=torch.float64)
    assert dpo_loss(margin, beta=0.1, loss_type="ipo", label_smoothing=0.0).item() == pytest.approx(4.0, abs=1e-9)


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


@pytest.mark.parametrize(("loss_type", "smoothing"), SETTINGS)
def test_dpo_loss_passes_gradcheck(loss_type: str, smoothing: float) -> None:
    margin = torch.tensor([-9.0, -0.4, 0.3, 12.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda value: dpo_loss(value, beta=0.3, loss_type=loss_type, label_smoothing=smoothing), margin
    )


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
        ({"loss_type": "ipo", "label_smoothing": 0.1}, "'ipo' has no label smoothing"),
    ],
)
def test_refuses_options_without_a_meaning(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DPO(**options)
