from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from mllm_align.contract import Signals, View
from mllm_align.objectives.svco import SVCO

OWN_CHOSEN, NONE_CHOSEN, OTHER_CHOSEN = (View(image, "chosen") for image in ("image", None, "contrast_image"))
OTHER_REJECTED, NONE_REJECTED, OWN_REJECTED = (View(image, "rejected") for image in ("image", None, "contrast_image"))
# The order of the oracles: w|i_w, w|i_l, l|i_w, l|i_l, w|0, l|0.
ORDER = (OWN_CHOSEN, OTHER_CHOSEN, OTHER_REJECTED, OWN_REJECTED, NONE_CHOSEN, NONE_REJECTED)


def signals_of(values: tuple[float, ...], tokens: int = 4) -> Signals:
    return Signals(
        {
            view: torch.tensor([value], dtype=torch.float64, requires_grad=True)
            for view, value in zip(ORDER, values, strict=True)
        },
        {view: torch.tensor([tokens]) for view in ORDER},
    )


def gradients(values: tuple[float, ...], objective: SVCO) -> tuple[float, list[float]]:
    """Loss and gradient for given log-ratios, in the order of the oracles."""
    policy = signals_of(values)
    loss = objective(policy, signals_of((0.0,) * 6)).loss
    loss.backward()
    return loss.item(), [0.0 if policy.logps[view].grad is None else policy.logps[view].grad.item() for view in ORDER]


def softplus(x: float) -> float:
    return math.log1p(math.exp(-x))


def by_hand(policy: Signals, reference: Signals, row: int, betas: tuple[float, float]) -> list[float]:
    """The four terms of one row in plain floats, from the formula."""
    attend, reject = betas
    r = {view: policy.logps[view][row].item() - reference.logps[view][row].item() for view in ORDER}
    return [
        softplus(attend * (r[OWN_CHOSEN] - r[NONE_CHOSEN])),
        softplus(reject * (r[NONE_CHOSEN] - r[OTHER_CHOSEN])),
        softplus(attend * (r[OWN_REJECTED] - r[NONE_REJECTED])),
        softplus(reject * (r[NONE_REJECTED] - r[OTHER_REJECTED])),
    ]


def test_needs_are_the_six_views_with_reference() -> None:
    assert set(SVCO().needs.views) == set(ORDER)
    assert SVCO().needs.reference
    assert not SVCO().needs.optional


@pytest.mark.parametrize("betas", [(0.1, 0.1), (0.5, 0.5), (0.3, 0.7), (2.0, 0.01)])
def test_equals_a_loop_over_rows(betas: tuple[float, float], make_signals: Callable[..., Signals]) -> None:
    objective = SVCO(beta_attend=betas[0], beta_reject=betas[1])
    policy, reference = make_signals(objective.needs, rows=7), make_signals(objective.needs, rows=7, value_seed=1)
    terms = [by_hand(policy, reference, row, betas) for row in range(7)]
    outcome = objective(policy, reference)
    assert outcome.loss.item() == pytest.approx(sum(map(sum, terms)) / 7, abs=1e-6)
    assert outcome.terms[0].sum.item() == pytest.approx(sum(map(sum, terms)), abs=1e-6)
    assert int(outcome.terms[0].count) == 7
    names = ("attend_chosen", "reject_chosen", "attend_rejected", "reject_rejected")
    for index, name in enumerate(names):
        wanted = [row[index] for row in terms]
        assert outcome.metrics[f"losses/{name}"].tolist() == pytest.approx(wanted, abs=1e-6)


def test_step_zero_is_four_log_two_and_the_no_image_scores_cancel() -> None:
    loss, gradient = gradients((0.0,) * 6, SVCO())
    assert loss == pytest.approx(2.772589, abs=1e-6)
    assert loss == pytest.approx(4 * math.log(2), abs=1e-12)
    assert gradient == pytest.approx([-0.05, 0.05, 0.05, -0.05, 0.0, 0.0], abs=1e-6)


def test_values_and_gradients_away_from_step_zero() -> None:
    loss, gradient = gradients((2.0, -1.0, -3.0, 1.0, 0.5, -0.5), SVCO())
    assert loss == pytest.approx(2.438811, abs=1e-6)
    assert gradient[4] == pytest.approx(0.0, abs=1e-9)
    assert gradient[5] == pytest.approx(0.0025, abs=5e-5)


def test_one_gradient_step_moves_every_score_the_right_way() -> None:
    _, gradient = gradients((0.3, -0.2, 0.1, 0.4, 0.0, 0.2), SVCO(beta_attend=0.4, beta_reject=0.2))
    assert [math.copysign(1, value) for value in gradient[:4]] == [-1, 1, 1, -1]


def test_swapping_the_two_halves_of_a_pair_changes_nothing() -> None:
    objective = SVCO(beta_attend=0.3, beta_reject=0.7)
    values = (2.0, -1.0, -3.0, 1.0, 0.5, -0.25)
    swapped = (1.0, -3.0, -1.0, 2.0, -0.25, 0.5)
    assert gradients(values, objective)[0] == pytest.approx(gradients(swapped, objective)[0], abs=1e-12)
    # Swapping responses alone, or betas alone, is another loss.
    responses_alone = (-3.0, 1.0, 2.0, -1.0, -0.25, 0.5)
    assert gradients(values, objective)[0] != pytest.approx(gradients(responses_alone, objective)[0], abs=1e-3)
    other_betas = SVCO(beta_attend=0.7, beta_reject=0.3)
    assert gradients(values, objective)[0] != pytest.approx(gradients(values, other_betas)[0], abs=1e-3)


def test_an_offset_of_a_response_in_all_its_views_changes_nothing(make_signals: Callable[..., Signals]) -> None:
    needs = SVCO().needs
    policy, reference = make_signals(needs), make_signals(needs, value_seed=1)
    offset = {"chosen": 17.0, "rejected": -40.0}
    moved = Signals({view: value + offset[view.response] for view, value in policy.logps.items()}, policy.num_tokens)
    torch.testing.assert_close(SVCO()(moved, reference).loss, SVCO()(policy, reference).loss)


def test_a_constant_in_policy_and_reference_alike_changes_nothing(make_signals: Callable[..., Signals]) -> None:
    needs = SVCO().needs
    policy, reference = make_signals(needs), make_signals(needs, value_seed=1)
    shift = {view: float(index) - 2 for index, view in enumerate(needs.views)}

    def moved(signals: Signals) -> Signals:
        return Signals({view: value + shift[view] for view, value in signals.logps.items()}, signals.num_tokens)

    torch.testing.assert_close(SVCO()(moved(policy), moved(reference)).loss, SVCO()(policy, reference).loss)


@pytest.mark.parametrize("scale", [1e2, 1e5])
def test_far_away_the_loss_is_linear_and_the_gradient_bounded_by_beta(scale: float) -> None:
    loss, gradient = gradients((-scale, scale, scale, -scale, 0.0, 0.0), SVCO())
    assert loss == pytest.approx(0.4 * scale, rel=1e-3)
    assert all(abs(value) <= 0.1 + 1e-9 for value in gradient)


def test_metrics_tell_margins_and_accuracies_of_each_comparison() -> None:
    values = (2.0, 1.0, -3.0, -1.0, 0.5, -0.5)
    metrics = SVCO(beta_attend=0.2, beta_reject=0.1)(signals_of(values), signals_of((0.0,) * 6)).metrics
    margins = {"attend_chosen": 0.3, "reject_chosen": -0.05, "attend_rejected": -0.1, "reject_rejected": 0.25}
    for name, margin in margins.items():
        assert metrics[f"margins/{name}"].item() == pytest.approx(margin)
        assert metrics[f"accuracies/{name}"].item() == float(margin > 0)
    assert metrics["margins/attend"].mean().item() == pytest.approx(0.1)
    assert metrics["margins/reject"].mean().item() == pytest.approx(0.1)
    assert metrics["logps/chosen|image"].item() == 2.0
    assert metrics["logps/rejected|no_image"].item() == -0.5


def test_a_tie_is_not_counted_as_right() -> None:
    metrics = SVCO()(signals_of((0.0,) * 6), signals_of((0.0,) * 6)).metrics
    accuracies = [value.item() for name, value in metrics.items() if name.startswith("accuracies/")]
    assert accuracies == [0.0] * 4


@pytest.mark.parametrize("missing", ORDER, ids=str)
def test_a_row_that_lacks_any_one_view_is_left_out(missing: View, make_signals: Callable[..., Signals]) -> None:
    policy = make_signals(SVCO().needs, rows=3)
    reference = make_signals(SVCO().needs, rows=3, value_seed=1)
    for signals in (policy, reference):
        signals.num_tokens[missing][1] = 0
    outcome = SVCO()(policy, reference)
    assert int(outcome.terms[0].count) == 2
    torch.testing.assert_close(outcome.loss, SVCO()(policy.select([0, 2]), reference.select([0, 2])).loss)
    assert all(value.shape[-1] == 2 for value in outcome.metrics.values())


def weighted_by_hand(policy: Signals, reference: Signals, attend: float, reject: float, sides: int) -> float:
    """The sum over rows of the first one or two sides of the formula, with weights."""
    total = 0.0
    for row in range(policy.logps[OWN_CHOSEN].numel()):
        terms = by_hand(policy, reference, row, (0.3, 0.7))
        total += sum(attend * terms[2 * side] + reject * terms[2 * side + 1] for side in range(sides))
    return total


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 2.0), (1.0, 0.0), (0.0, 0.25)])
def test_weights_and_sides_alone(
    weights: tuple[float, float], symmetric: bool, make_signals: Callable[..., Signals]
) -> None:
    attend, reject = weights
    objective = SVCO(beta_attend=0.3, beta_reject=0.7, attend_weight=attend, reject_weight=reject, symmetric=symmetric)
    policy, reference = make_signals(SVCO().needs), make_signals(SVCO().needs, value_seed=1)
    outcome = objective(policy, reference)
    wanted = weighted_by_hand(policy, reference, attend, reject, 1 + symmetric)
    assert outcome.terms[0].sum.item() == pytest.approx(wanted, abs=1e-6)
    told = {name.split("/")[1] for name in outcome.metrics if name.startswith("losses/")}
    responses = ("chosen", "rejected") if symmetric else ("chosen",)
    kinds = [kind for kind, weight in (("attend", attend), ("reject", reject)) if weight]
    assert told == {f"{kind}_{response}" for kind in kinds for response in responses}
    for kind in kinds:
        assert outcome.metrics[f"margins/{kind}"].shape == (len(responses), 6)


def test_one_sided_rows_need_no_rejected_response(make_signals: Callable[..., Signals]) -> None:
    objective = SVCO(symmetric=False)
    assert set(objective.needs.views) == {OWN_CHOSEN, NONE_CHOSEN, OTHER_CHOSEN}
    assert set(SVCO(symmetric=False, reject_weight=0).needs.views) == {OWN_CHOSEN, NONE_CHOSEN}
    assert set(SVCO(attend_weight=0).needs.views) == {NONE_CHOSEN, OTHER_CHOSEN, NONE_REJECTED, OTHER_REJECTED}
    policy, reference = make_signals(objective.needs), make_signals(objective.needs, value_seed=1)
    assert int(objective(policy, reference).terms[0].count) == 6


def test_one_sided_at_step_zero_is_two_log_two() -> None:
    loss, gradient = gradients((0.0,) * 6, SVCO(symmetric=False))
    assert loss == pytest.approx(2 * math.log(2), abs=1e-12)
    assert gradient == pytest.approx([-0.05, 0.05, 0.0, 0.0, 0.0, 0.0], abs=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attend_weight": -1}, "SVCO: attend_weight must be a number of at least 0, got -1"),
        ({"reject_weight": math.nan}, "reject_weight must be"),
        ({"attend_weight": 0, "reject_weight": 0}, "nothing is left to train, one of attend_weight, reject_weight"),
        ({"symmetric": "no"}, "SVCO: symmetric must be true or false, got 'no'"),
    ],
)
def test_refuses_switches_without_a_meaning(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SVCO(**options)


@pytest.mark.parametrize("bad", [0, -0.1, math.nan, math.inf, "0.1", True, None])
@pytest.mark.parametrize("name", ["beta_attend", "beta_reject"])
def test_refuses_betas_without_a_meaning(name: str, bad: object) -> None:
    with pytest.raises(ValueError, match=f"SVCO: {name} must be a number above 0"):
        SVCO(**{name: bad})
