from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mllm_align.contract import Needs, Signals
from mllm_align.objectives.comparison import (
    Comparison,
    compare,
    comparison_metrics,
    preference_loss,
    switched_on,
    views_of,
)
from ratios import CHOSEN, CONTRAST_CHOSEN, NONE_CHOSEN, REJECTED, lost, ratios_of, row_of

TABLE = (
    Comparison("text", CHOSEN, REJECTED, beta=0.3, weight=2.0),
    Comparison("image", CHOSEN, CONTRAST_CHOSEN, beta=0.7),
    Comparison("anchor", REJECTED, -0.5, beta=0.2, weight=0.25),
)
NEEDS = Needs(views=(CHOSEN, REJECTED, CONTRAST_CHOSEN), reference=True)


def test_views_are_those_compared_each_once_and_numbers_are_none() -> None:
    assert views_of(TABLE) == (CHOSEN, REJECTED, CONTRAST_CHOSEN)
    assert views_of(TABLE[1:]) == (CHOSEN, CONTRAST_CHOSEN, REJECTED)
    assert views_of(TABLE[2:]) == (REJECTED,)


def test_a_weight_of_zero_is_off() -> None:
    assert switched_on(TABLE[0], TABLE[1]._replace(weight=0.0), TABLE[2]) == (TABLE[0], TABLE[2])


def test_equals_a_loop_over_rows_and_comparisons(make_signals: Callable[..., Signals]) -> None:
    policy, reference = make_signals(NEEDS, rows=7), make_signals(NEEDS, rows=7, value_seed=1)
    total, losses = 0.0, {"text": [], "image": [], "anchor": []}
    for row in range(7):
        r = ratios_of(policy, reference, row)
        own = {
            "text": lost(0.3 * (r[CHOSEN] - r[REJECTED])),
            "image": lost(0.7 * (r[CHOSEN] - r[CONTRAST_CHOSEN])),
            "anchor": lost(0.2 * (r[REJECTED] + 0.5)),
        }
        total += 2.0 * own["text"] + own["image"] + 0.25 * own["anchor"]
        for name, loss in own.items():
            losses[name].append(loss)
    outcome = compare("mine", TABLE, policy, reference)
    (term,) = outcome.terms
    assert (term.name, term.weight, int(term.count)) == ("mine", 1.0, 7)
    assert term.sum.item() == pytest.approx(total, abs=1e-6)
    for name, wanted in losses.items():
        assert outcome.metrics[f"losses/{name}"].tolist() == pytest.approx(wanted, abs=1e-6)
    assert torch.equal(outcome.metrics["logps/chosen|image"], policy.logps[CHOSEN])


def test_rows_that_lack_a_view_compared_are_left_out(make_signals: Callable[..., Signals]) -> None:
    policy, reference = make_signals(NEEDS, rows=3), make_signals(NEEDS, rows=3, value_seed=1)
    for signals in (policy, reference):
        signals.num_tokens[CONTRAST_CHOSEN][1] = 0
    outcome = compare("mine", TABLE, policy, reference)
    assert int(outcome.terms[0].count) == 2
    kept = compare("mine", TABLE, policy.select([0, 2]), reference.select([0, 2]))
    torch.testing.assert_close(outcome.loss, kept.loss)
    assert int(compare("mine", TABLE[:1], policy, reference).terms[0].count) == 3


def test_metrics_of_margins_a_tie_is_not_right() -> None:
    margin = torch.tensor([0.5, 0.0, -1.0], requires_grad=True)
    metrics = comparison_metrics({"a": margin})
    assert metrics["accuracies/a"].tolist() == [1.0, 0.0, 0.0]
    assert metrics["margins/a"].tolist() == [0.5, 0.0, -1.0]
    assert metrics["losses/a"].tolist() == pytest.approx([lost(0.5), lost(0.0), lost(-1.0)])
    assert not any(value.requires_grad for value in metrics.values())


def test_preference_loss_passes_gradcheck_and_its_gradient_is_bounded_by_beta() -> None:
    better, worse = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: preference_loss(a, b, beta=0.4), (better, worse))
    far = torch.tensor([-1e5], requires_grad=True)
    loss = preference_loss(far, 0.0, beta=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert far.grad.item() == pytest.approx(-0.1)


def test_what_was_not_measured_is_named() -> None:
    with pytest.raises(ValueError, match=r"not measured: chosen\|no_image"):
        compare("mine", [Comparison("a", CHOSEN, NONE_CHOSEN, 0.1)], row_of({CHOSEN: 0.0}), None)
    with pytest.raises(ValueError, match="measure one and pass its Signals"):
        compare("mine", TABLE[2:], row_of({REJECTED: 0.0}), None)
