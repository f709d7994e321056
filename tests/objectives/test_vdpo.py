from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mllm_align.contract import Signals, View
from mllm_align.objectives import DPO, VDPO
from mllm_align.objectives.vdpo import guided
from ratios import CHOSEN, CONTRAST_CHOSEN, CONTRAST_REJECTED, NONE_CHOSEN, NONE_REJECTED, REJECTED, at, lost


def test_needs_both_responses_with_the_image_and_without() -> None:
    assert VDPO().needs.views == (CHOSEN, REJECTED, NONE_CHOSEN, NONE_REJECTED)
    assert VDPO(image_free="contrast_image").needs.views == (CHOSEN, REJECTED, CONTRAST_CHOSEN, CONTRAST_REJECTED)
    assert VDPO().needs.reference
    assert VDPO() == VDPO(beta=0.1, gamma=2.0, image_free=None)


@pytest.mark.parametrize("image_free", [None, "contrast_image"])
@pytest.mark.parametrize(("beta", "gamma"), [(0.1, 2.0), (0.7, 1.0), (0.3, 0.4)])
def test_equals_a_loop_over_rows(
    beta: float, gamma: float, image_free: str | None, make_signals: Callable[..., Signals]
) -> None:
    objective = VDPO(beta=beta, gamma=gamma, image_free=image_free)
    policy, reference = make_signals(objective.needs, rows=8), make_signals(objective.needs, rows=8, value_seed=1)
    total = 0.0
    for row in range(8):
        score = {}
        for response in ("chosen", "rejected"):
            own, none = (policy.logps[View(image, response)][row].item() for image in ("image", image_free))
            mixed = gamma * own - (gamma - 1) * none
            score[response] = mixed - reference.logps[View("image", response)][row].item()
        total += lost(beta * (score["chosen"] - score["rejected"]))
    outcome = objective(policy, reference)
    assert outcome.loss.item() == pytest.approx(total / 8, abs=1e-6)
    assert (outcome.terms[0].name, int(outcome.terms[0].count)) == ("vdpo", 8)


def test_at_gamma_one_it_is_dpo(make_signals: Callable[..., Signals]) -> None:
    objective = VDPO(beta=0.3, gamma=1.0)
    policy, reference = make_signals(objective.needs), make_signals(objective.needs, value_seed=1)
    torch.testing.assert_close(objective(policy, reference).loss, DPO(beta=0.3)(policy, reference).loss)


def test_the_image_is_amplified_and_the_image_free_score_a_constant() -> None:
    start = dict.fromkeys(VDPO().needs.views, 0.0)
    loss, gradient = at(VDPO(gamma=3.0), start)
    assert loss == pytest.approx(0.693147, abs=1e-6)
    assert [gradient[view] for view in VDPO().needs.views] == pytest.approx([-0.15, 0.15, 0.0, 0.0])


def test_a_response_that_the_image_makes_likely_starts_ahead() -> None:
    lp = dict(zip(VDPO().needs.views, (-4.0, -6.0, -9.0, -7.0), strict=True))
    signals = Signals({v: torch.tensor([x]) for v, x in lp.items()}, {v: torch.tensor([4]) for v in lp})
    outcome = VDPO(gamma=2.0)(signals, signals)
    assert outcome.loss.item() == pytest.approx(lost(0.1 * (5.0 - 1.0)), abs=1e-6)
    assert outcome.metrics["guidance/chosen"].item() == 5.0
    assert outcome.metrics["guidance/rejected"].item() == 1.0
    assert outcome.metrics["margins/text"].item() == pytest.approx(0.4)


def test_guided_has_no_gradient_through_the_image_free_side() -> None:
    own, none = (torch.randn(3, requires_grad=True) for _ in range(2))
    guided(own, none, gamma=1.5).sum().backward()
    assert own.grad.tolist() == [1.5] * 3
    assert none.grad is None


def test_a_constant_in_policy_and_reference_alike_moves_nothing_but_the_guidance(
    make_signals: Callable[..., Signals],
) -> None:
    """An offset of a response in all its views, reference included, cancels in guidance and log-ratio."""
    needs = VDPO().needs
    policy, reference = make_signals(needs), make_signals(needs, value_seed=1)
    offset = {"chosen": 17.0, "rejected": -40.0}

    def moved(signals: Signals) -> Signals:
        shifted = {view: value + offset[view.response] for view, value in signals.logps.items()}
        return Signals(shifted, signals.num_tokens)

    torch.testing.assert_close(VDPO()(moved(policy), moved(reference)).loss, VDPO()(policy, reference).loss)


def test_a_row_that_lacks_a_view_is_left_out(make_signals: Callable[..., Signals]) -> None:
    policy, reference = make_signals(VDPO().needs, rows=3), make_signals(VDPO().needs, rows=3, value_seed=1)
    for signals in (policy, reference):
        signals.num_tokens[NONE_REJECTED][1] = 0
    outcome = VDPO()(policy, reference)
    assert int(outcome.terms[0].count) == 2
    torch.testing.assert_close(outcome.loss, VDPO()(policy.select([0, 2]), reference.select([0, 2])).loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0}, "VDPO: beta must be a number above 0"),
        ({"gamma": 0.0}, "VDPO: gamma must be a number above 0, got 0.0"),
        ({"image_free": "image"}, "image_free must be null or 'contrast_image', got 'image'"),
    ],
)
def test_refuses_options_without_a_meaning(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VDPO(**options)
