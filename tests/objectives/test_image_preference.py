from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mllm_align.contract import Signals
from mllm_align.objectives import ImagePreference
from mllm_align.objectives.weighted import class_to_name
from ratios import CHOSEN, CONTRAST_CHOSEN, CONTRAST_REJECTED, REJECTED, at, lost, ratios_of

ALL = (CHOSEN, CONTRAST_CHOSEN, CONTRAST_REJECTED, REJECTED)


def test_one_way_needs_no_rejected_response() -> None:
    assert ImagePreference().needs.views == (CHOSEN, CONTRAST_CHOSEN)
    assert ImagePreference(both_ways=True).needs.views == ALL
    assert ImagePreference().needs.reference
    assert class_to_name(ImagePreference) == "image_preference"


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("beta", [0.1, 0.8])
def test_equals_a_loop_over_rows(beta: float, both_ways: bool, make_signals: Callable[..., Signals]) -> None:
    objective = ImagePreference(beta=beta, both_ways=both_ways)
    policy, reference = make_signals(objective.needs, rows=8), make_signals(objective.needs, rows=8, value_seed=1)
    total = 0.0
    for row in range(8):
        own = ratios_of(policy, reference, row)
        total += lost(beta * (own[CHOSEN] - own[CONTRAST_CHOSEN]))
        if both_ways:
            total += lost(beta * (own[CONTRAST_REJECTED] - own[REJECTED]))
    outcome = objective(policy, reference)
    assert outcome.loss.item() == pytest.approx(total / 8, abs=1e-6)
    assert (outcome.terms[0].name, int(outcome.terms[0].count)) == ("image_preference", 8)


def test_step_zero() -> None:
    loss, gradient = at(ImagePreference(), dict.fromkeys(ALL[:2], 0.0))
    assert loss == pytest.approx(0.693147, abs=1e-6)
    assert [gradient[view] for view in ALL[:2]] == pytest.approx([-0.05, 0.05])
    loss, gradient = at(ImagePreference(both_ways=True), dict.fromkeys(ALL, 0.0))
    assert loss == pytest.approx(1.386294, abs=1e-6)
    assert [gradient[view] for view in ALL] == pytest.approx([-0.05, 0.05, -0.05, 0.05])


def test_both_ways_the_two_halves_of_a_pair_may_be_swapped() -> None:
    objective = ImagePreference(both_ways=True)
    values = dict(zip(ALL, (2.0, -1.0, 1.0, -3.0), strict=True))
    swapped = dict(zip(ALL, (1.0, -3.0, 2.0, -1.0), strict=True))
    assert at(objective, values)[0] == pytest.approx(at(objective, swapped)[0], abs=1e-12)


def test_an_offset_of_a_response_in_all_its_views_changes_nothing(make_signals: Callable[..., Signals]) -> None:
    objective = ImagePreference(both_ways=True)
    policy, reference = make_signals(objective.needs), make_signals(objective.needs, value_seed=1)
    offset = {"chosen": 17.0, "rejected": -40.0}
    moved = Signals({view: value + offset[view.response] for view, value in policy.logps.items()}, policy.num_tokens)
    torch.testing.assert_close(objective(moved, reference).loss, objective(policy, reference).loss)


def test_a_row_without_a_contrast_image_is_left_out(make_signals: Callable[..., Signals]) -> None:
    objective = ImagePreference()
    policy, reference = make_signals(objective.needs, rows=3), make_signals(objective.needs, rows=3, value_seed=1)
    for signals in (policy, reference):
        signals.num_tokens[CONTRAST_CHOSEN][0] = 0
    outcome = objective(policy, reference)
    assert int(outcome.terms[0].count) == 2
    torch.testing.assert_close(outcome.loss, objective(policy.select([1, 2]), reference.select([1, 2])).loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0}, "ImagePreference: beta must be a number above 0"),
        ({"both_ways": 1}, "ImagePreference: both_ways must be true or false, got 1"),
    ],
)
def test_refuses_options_without_a_meaning(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImagePreference(**options)
