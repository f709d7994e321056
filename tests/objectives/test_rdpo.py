from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from mllm_align.contract import Signals
from mllm_align.objectives import DPO, MDPO, RDPO, ImagePreference, NextToken, Weighted
from mllm_align.objectives.weighted import class_to_name
from ratios import CHOSEN, CONTRAST_CHOSEN, REJECTED, at, lost, ratios_of

VIEWS = (CHOSEN, REJECTED, CONTRAST_CHOSEN)


def r(chosen: float, rejected: float, contrast: float) -> dict:
    return dict(zip(VIEWS, (chosen, rejected, contrast), strict=True))


def test_needs_and_name() -> None:
    assert RDPO().needs.views == VIEWS
    assert RDPO().needs.reference
    assert not RDPO().needs.tokens
    assert RDPO(text_weight=0).needs.views == (CHOSEN, CONTRAST_CHOSEN)
    assert RDPO(image_weight=0).needs.views == (CHOSEN, REJECTED)
    assert class_to_name(RDPO) == "rdpo"


@pytest.mark.parametrize("options", [{}, {"beta": 0.7}, {"text_weight": 0.5, "image_weight": 2.0}])
def test_equals_a_loop_over_rows(options: dict, make_signals: Callable[..., Signals]) -> None:
    objective = RDPO(**options)
    policy, reference = make_signals(objective.needs, rows=8), make_signals(objective.needs, rows=8, value_seed=1)
    beta, text, image = (
        options.get(key, value) for key, value in (("beta", 0.1), ("text_weight", 1), ("image_weight", 1))
    )
    total = 0.0
    for row in range(8):
        own = ratios_of(policy, reference, row)
        total += text * lost(beta * (own[CHOSEN] - own[REJECTED]))
        total += image * lost(beta * (own[CHOSEN] - own[CONTRAST_CHOSEN]))
    outcome = objective(policy, reference)
    assert outcome.loss.item() == pytest.approx(total / 8, abs=1e-6)
    assert outcome.terms[0].sum.item() == pytest.approx(total, abs=1e-6)
    assert (outcome.terms[0].name, int(outcome.terms[0].count)) == ("rdpo", 8)


def test_step_zero_is_two_log_two() -> None:
    loss, gradient = at(RDPO(), r(0.0, 0.0, 0.0))
    assert loss == pytest.approx(1.386294, abs=1e-6)
    assert [gradient[view] for view in VIEWS] == pytest.approx([-0.10, 0.05, 0.05], abs=1e-9)


def test_away_from_step_zero() -> None:
    loss, gradient = at(RDPO(), r(1.0, -2.0, 0.5))
    assert loss == pytest.approx(1.222815, abs=1e-6)
    assert [gradient[view] for view in VIEWS] == pytest.approx([-0.0913, 0.0426, 0.0488], abs=5e-5)


def test_far_away_the_loss_is_linear_and_the_gradient_bounded() -> None:
    loss, gradient = at(RDPO(), r(-1e4, 1e4, 1e4))
    assert loss == pytest.approx(0.1 * 4e4, rel=1e-6)
    assert gradient[CHOSEN] == pytest.approx(-0.2)


def test_parts_alone_are_dpo_and_the_image_term(make_signals: Callable[..., Signals]) -> None:
    policy, reference = make_signals(RDPO().needs), make_signals(RDPO().needs, value_seed=1)
    text = RDPO(beta=0.3, image_weight=0)(policy, reference).loss
    image = RDPO(beta=0.3, text_weight=0)(policy, reference).loss
    torch.testing.assert_close(text, DPO(beta=0.3)(policy, reference).loss)
    torch.testing.assert_close(image, ImagePreference(beta=0.3)(policy, reference).loss)
    torch.testing.assert_close(text + image, RDPO(beta=0.3)(policy, reference).loss)
    torch.testing.assert_close(text + image, MDPO(beta=0.3, anchor_weight=0)(policy, reference).loss)


def test_the_image_loss_feels_no_offset_of_a_response_and_the_text_loss_does(
    make_signals: Callable[..., Signals],
) -> None:
    policy, reference = make_signals(RDPO().needs), make_signals(RDPO().needs, value_seed=1)
    offset = {"chosen": 17.0, "rejected": -40.0}
    moved = Signals({view: value + offset[view.response] for view, value in policy.logps.items()}, policy.num_tokens)
    image, text = RDPO(text_weight=0), RDPO(image_weight=0)
    torch.testing.assert_close(image(moved, reference).loss, image(policy, reference).loss)
    assert abs(text(moved, reference).loss - text(policy, reference).loss) > 0.1


def test_a_constant_in_policy_and_reference_alike_changes_nothing() -> None:
    shifted = {
        view: value + shift for (view, value), shift in zip(r(1, -2, 0.5).items(), (3.0, -9.0, 5.0), strict=True)
    }
    policy = Signals({v: torch.tensor([x]) for v, x in shifted.items()}, {v: torch.tensor([4]) for v in VIEWS})
    start = dict(zip(VIEWS, (3.0, -9.0, 5.0), strict=True))
    reference = Signals({v: torch.tensor([x]) for v, x in start.items()}, policy.num_tokens)
    assert RDPO()(policy, reference).loss.item() == pytest.approx(1.222815, abs=1e-6)


@pytest.mark.parametrize("missing", VIEWS, ids=str)
def test_a_row_that_lacks_a_view_is_left_out_where_it_is_compared(
    missing: object, make_signals: Callable[..., Signals]
) -> None:
    policy, reference = make_signals(RDPO().needs, rows=3), make_signals(RDPO().needs, rows=3, value_seed=1)
    for signals in (policy, reference):
        signals.num_tokens[missing][1] = 0
    for objective in (RDPO(), RDPO(text_weight=0), RDPO(image_weight=0)):
        outcome = objective(policy, reference)
        kept = [0, 2] if missing in objective.needs.views else [0, 1, 2]
        assert int(outcome.terms[0].count) == len(kept)
        torch.testing.assert_close(outcome.loss, objective(policy.select(kept), reference.select(kept)).loss)


def test_beside_next_token_on_other_rows(make_signals: Callable[..., Signals]) -> None:
    both = Weighted((RDPO(), 2.0, "pairs"), (NextToken(matched=False), 0.5, "instructions"))
    policy, reference = make_signals(both.needs), make_signals(both.needs, value_seed=1)
    outcome = both(policy, reference)
    pairs = RDPO()(policy.select([0, 2, 4]), reference.select([0, 2, 4]))
    assert [(term.name, term.weight) for term in outcome.terms] == [("rdpo", 2.0), ("next_token", 0.5)]
    torch.testing.assert_close(outcome.terms[0].sum, pairs.terms[0].sum)
    assert outcome.metrics["rdpo/margins/image"].shape == (3,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0}, "RDPO: beta must be a number above 0, got 0"),
        ({"beta": True}, "beta must be a number above 0"),
        ({"image_weight": -1}, "RDPO: image_weight must be a number of at least 0, got -1"),
        ({"text_weight": math.inf}, "text_weight must be"),
        ({"text_weight": "1"}, "text_weight must be"),
        ({"text_weight": 0, "image_weight": 0}, "nothing is left to train, one of text_weight, image_weight must be"),
    ],
)
def test_refuses_options_without_a_meaning(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RDPO(**options)
