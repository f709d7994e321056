from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from mllm_align.contract import Signals
from mllm_align.objectives import MDPO, RDPO, Weighted
from mllm_align.objectives.weighted import class_to_name
from ratios import CHOSEN, CONTRAST_CHOSEN, REJECTED, at, lost, ratios_of

VIEWS = (CHOSEN, REJECTED, CONTRAST_CHOSEN)


def r(chosen: float, rejected: float, contrast: float) -> dict:
    return dict(zip(VIEWS, (chosen, rejected, contrast), strict=True))


def test_needs_and_name() -> None:
    assert MDPO().needs.views == VIEWS
    assert MDPO().needs.reference
    assert MDPO(text_weight=0).needs.views == (CHOSEN, CONTRAST_CHOSEN)
    assert MDPO(text_weight=0, image_weight=0).needs.views == (CHOSEN,)
    assert class_to_name(MDPO) == "mdpo"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta": 0.7, "anchor": 1.5},
        {"text_weight": 0.5, "image_weight": 2.0, "anchor_weight": 0.1, "anchor": -2},
    ],
)
def test_equals_a_loop_over_rows(options: dict, make_signals: Callable[..., Signals]) -> None:
    objective = MDPO(**options)
    policy, reference = make_signals(objective.needs, rows=8), make_signals(objective.needs, rows=8, value_seed=1)
    beta, delta = options.get("beta", 0.1), options.get("anchor", 0.0)
    text, image, anchor = (options.get(f"{name}_weight", 1.0) for name in ("text", "image", "anchor"))
    total = 0.0
    for row in range(8):
        own = ratios_of(policy, reference, row)
        total += text * lost(beta * (own[CHOSEN] - own[REJECTED]))
        total += image * lost(beta * (own[CHOSEN] - own[CONTRAST_CHOSEN]))
        total += anchor * lost(beta * (own[CHOSEN] - delta))
    outcome = objective(policy, reference)
    assert outcome.loss.item() == pytest.approx(total / 8, abs=1e-6)
    assert (outcome.terms[0].name, int(outcome.terms[0].count)) == ("mdpo", 8)
    assert outcome.terms[0].sum.item() == pytest.approx(total, abs=1e-6)


def test_step_zero_is_three_log_two() -> None:
    loss, gradient = at(MDPO(), r(0.0, 0.0, 0.0))
    assert loss == pytest.approx(2.079442, abs=1e-6)
    assert [gradient[view] for view in VIEWS] == pytest.approx([-0.15, 0.05, 0.05], abs=1e-9)


def test_away_from_step_zero() -> None:
    loss, gradient = at(MDPO(), r(1.0, -2.0, 0.5))
    assert loss == pytest.approx(1.867211, abs=1e-6)
    assert [gradient[view] for view in VIEWS] == pytest.approx([-0.1388, 0.0426, 0.0488], abs=5e-5)


def test_the_anchor_asks_for_a_gain_of_delta() -> None:
    alone = {"text_weight": 0, "image_weight": 0}
    assert at(MDPO(anchor=2.0, **alone), {CHOSEN: 2.0})[0] == pytest.approx(math.log(2))
    assert at(MDPO(anchor=2.0, **alone), {CHOSEN: 5.0})[0] == pytest.approx(lost(0.3))


def test_the_anchor_alone_feels_an_offset_of_the_chosen_response(make_signals: Callable[..., Signals]) -> None:
    policy, reference = make_signals(MDPO().needs), make_signals(MDPO().needs, value_seed=1)
    moved = Signals({view: value + 17.0 for view, value in policy.logps.items()}, policy.num_tokens)
    without = MDPO(anchor_weight=0)
    torch.testing.assert_close(without(moved, reference).loss, without(policy, reference).loss)
    torch.testing.assert_close(without(policy, reference).loss, RDPO()(policy, reference).loss)
    assert MDPO()(moved, reference).loss < MDPO()(policy, reference).loss - 0.1


def test_metrics_tell_the_three_losses_apart() -> None:
    policy = Signals(
        {v: torch.tensor([x]) for v, x in r(1.0, -2.0, 0.5).items()}, {v: torch.tensor([4]) for v in VIEWS}
    )
    start = Signals({v: torch.zeros(1) for v in VIEWS}, policy.num_tokens)
    metrics = MDPO(text_weight=0.0, image_weight=3.0)(policy, start).metrics
    assert {name for name in metrics if name.startswith("losses/")} == {"losses/image", "losses/anchor"}
    assert metrics["losses/image"].item() == pytest.approx(lost(0.05))
    assert metrics["margins/anchor"].item() == pytest.approx(0.1)
    assert metrics["accuracies/image"].item() == 1.0
    assert "logps/rejected|image" not in metrics


def test_each_part_of_a_weighted_sum_keeps_its_rows(make_signals: Callable[..., Signals]) -> None:
    crops = Weighted((MDPO(), 1.0, "pairs"), (MDPO(text_weight=0), 0.5, "instructions"))
    assert crops.needs_for("instructions").views == (CHOSEN, CONTRAST_CHOSEN)
    policy, reference = make_signals(crops.needs), make_signals(crops.needs, value_seed=1)
    outcome = crops(policy, reference)
    assert [(term.name, int(term.count)) for term in outcome.terms] == [("mdpo_pairs", 3), ("mdpo_instructions", 3)]
    alone = MDPO(text_weight=0)(policy.select([1, 3, 5]), reference.select([1, 3, 5]))
    torch.testing.assert_close(outcome.terms[1].sum, alone.terms[0].sum)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -0.1}, "MDPO: beta must be a number above 0"),
        ({"anchor": math.nan}, "MDPO: anchor must be a finite number, got nan"),
        ({"anchor": "0"}, "anchor must be a finite number, got '0'"),
        ({"anchor_weight": -1}, "anchor_weight must be a number of at least 0"),
        ({"text_weight": 0, "image_weight": 0, "anchor_weight": 0}, "nothing is left to train"),
    ],
)
def test_refuses_options_without_a_meaning(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MDPO(**options)
