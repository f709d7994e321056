from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mllm_align.contract import Signals, View
from mllm_align.objectives import CHIP, DDPO, DPO, RDPO, ImagePreference, NextToken, Weighted
from mllm_align.objectives.chip import chip_loss
from mllm_align.objectives.segments import changed_tokens
from mllm_align.objectives.weighted import class_to_name
from ratios import CHOSEN, CONTRAST_CHOSEN, REJECTED, at, lost

VIEWS = (CHOSEN, REJECTED, CONTRAST_CHOSEN)


def r(chosen: float, rejected: float, contrast: float) -> dict:
    return dict(zip(VIEWS, (chosen, rejected, contrast), strict=True))


def weighted_ratio(policy: Signals, reference: Signals, view: View, row: int, plain: float, changed: float) -> float:
    """Sum over tokens of the log-ratio, an unchanged token times `plain`, a changed one times `changed`."""
    ids = policy.host_token_ids[CHOSEN][row], policy.host_token_ids[REJECTED][row]
    flags = changed_tokens(*ids)[view.response == "rejected"]
    new, old = (
        side.token_logps[view].values[side.token_logps[view].row == row].tolist() for side in (policy, reference)
    )
    return sum((changed if flag else plain) * (a - b) for a, b, flag in zip(new, old, flags, strict=True))


def test_needs_and_name() -> None:
    assert CHIP().needs.views == VIEWS
    assert CHIP().needs.tokens
    assert CHIP().needs.reference
    assert not CHIP(segment_weight=0).needs.tokens
    assert CHIP(text_weight=0, segment_weight=0).needs.views == (CHOSEN, CONTRAST_CHOSEN)
    assert CHIP(text_weight=0, image_weight=0).needs.views == (CHOSEN, REJECTED)
    assert class_to_name(CHIP) == "chip"


@pytest.mark.parametrize("weights", [(1.0, 1.0, 3.0), (0.5, 2.0, 1.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.2)])
def test_equals_a_loop_over_tokens(weights: tuple[float, float, float], make_signals: Callable[..., Signals]) -> None:
    text, image, segment = weights
    objective = CHIP(beta=0.2, text_weight=text, image_weight=image, segment_weight=segment)
    policy, reference = (make_signals(CHIP().needs, rows=12, value_seed=seed) for seed in (0, 1))
    total = 0.0
    for row in range(12):
        whole = {view: weighted_ratio(policy, reference, view, row, 1.0, 1.0) for view in VIEWS}
        part = {view: weighted_ratio(policy, reference, view, row, 0.0, 1.0) for view in VIEWS}
        total += text * lost(0.2 * (whole[CHOSEN] - whole[REJECTED]))
        total += image * lost(0.2 * (whole[CHOSEN] - whole[CONTRAST_CHOSEN]))
        total += segment * lost(0.2 * (part[CHOSEN] - part[REJECTED]))
    outcome = objective(policy, reference)
    assert outcome.loss.item() == pytest.approx(total / 12, abs=1e-6)
    assert (outcome.terms[0].name, int(outcome.terms[0].count)) == ("chip", 12)


@pytest.mark.parametrize(("image", "segment"), [(1.0, 3.0), (0.0, 1.0), (0.5, 0.1)])
def test_joint_equals_one_sigmoid_over_token_weighted_sums(
    image: float, segment: float, make_signals: Callable[..., Signals]
) -> None:
    objective = CHIP(image_weight=image, segment_weight=segment, joint=True)
    policy, reference = (make_signals(CHIP().needs, rows=12, value_seed=seed) for seed in (0, 1))
    total = 0.0
    for row in range(12):
        own = {view: weighted_ratio(policy, reference, view, row, 1.0, 1.0 + segment) for view in VIEWS}
        total += lost(0.1 * (own[CHOSEN] - own[REJECTED] + image * (own[CHOSEN] - own[CONTRAST_CHOSEN])))
    assert objective(policy, reference).terms[0].sum.item() == pytest.approx(total, abs=1e-6)


def test_step_zero(make_signals: Callable[..., Signals]) -> None:
    signals = make_signals(CHIP().needs)
    assert CHIP(joint=True)(signals, signals).loss.item() == pytest.approx(0.693147, abs=1e-6)
    assert CHIP()(signals, signals).loss.item() == pytest.approx(5 * 0.693147, abs=1e-5)
    loss, gradient = at(CHIP(segment_weight=0, joint=True), r(0.0, 0.0, 0.0))
    assert loss == pytest.approx(0.693147, abs=1e-6)
    assert [gradient[view] for view in VIEWS] == pytest.approx([-0.10, 0.05, 0.05], abs=1e-9)


def test_sum_of_losses_and_loss_of_sum_are_two_things() -> None:
    loss, gradient = at(CHIP(segment_weight=0, joint=True), r(1.0, -2.0, 0.5))
    assert loss == pytest.approx(0.533382, abs=1e-6)
    assert [gradient[view] for view in VIEWS] == pytest.approx([-0.0827, 0.0413, 0.0413], abs=5e-5)
    loss, gradient = at(CHIP(segment_weight=0), r(1.0, -2.0, 0.5))
    assert loss == pytest.approx(1.222815, abs=1e-6)
    assert [gradient[view] for view in VIEWS] == pytest.approx([-0.0913, 0.0426, 0.0488], abs=5e-5)


def test_parts_alone_are_what_others_are(make_signals: Callable[..., Signals]) -> None:
    policy, reference = (make_signals(CHIP().needs, value_seed=seed) for seed in (0, 1))
    for objective, same in (
        (CHIP(segment_weight=0), RDPO()),
        (CHIP(segment_weight=0, image_weight=0), DPO()),
        (CHIP(segment_weight=0, text_weight=0), ImagePreference()),
        (CHIP(segment_weight=0, image_weight=0, joint=True), DPO()),
        (CHIP(segment_weight=3, image_weight=0, joint=True), DDPO(gamma=4, beta=0.1, normalise=False)),
    ):
        torch.testing.assert_close(objective(policy, reference).loss, same(policy, reference).loss)


def test_metrics_tell_the_losses_that_are_on(make_signals: Callable[..., Signals]) -> None:
    policy, reference = (make_signals(CHIP().needs, value_seed=seed) for seed in (0, 1))

    def told(objective: CHIP) -> set[str]:
        metrics = objective(policy, reference).metrics
        return {name.split("/")[1] for name in metrics if name.startswith("margins/")}

    assert told(CHIP()) == {"text", "image", "segment"}
    assert told(CHIP(joint=True)) == {"text", "image"}
    assert told(CHIP(image_weight=0, text_weight=0)) == {"segment"}


def test_a_row_that_lacks_a_view_is_left_out_of_a_weighted_sum_too(make_signals: Callable[..., Signals]) -> None:
    both = Weighted((CHIP(), 1.0, "pairs"), (NextToken(matched=False), 0.5, "instructions"))
    policy, reference = (make_signals(both.needs, value_seed=seed) for seed in (0, 1))
    outcome = both(policy, reference)
    alone = CHIP()(policy.select([4, 0, 2]), reference.select([4, 0, 2]))
    torch.testing.assert_close(outcome.terms[0].sum, alone.terms[0].sum)
    assert int(outcome.terms[0].count) == 3


def test_chip_loss_passes_gradcheck() -> None:
    margins = tuple(torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    weights = {"text": 1.0, "image": 0.5, "segment": 3.0}
    for joint in (False, True):
        assert torch.autograd.gradcheck(
            lambda *given, joint=joint: chip_loss(dict(zip(weights, given, strict=True)), weights, joint=joint),
            margins,
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0}, "CHIP: beta must be a number above 0"),
        ({"segment_weight": -1}, "CHIP: segment_weight must be a number of at least 0"),
        ({"text_weight": 0, "image_weight": 0, "segment_weight": 0}, "CHIP: nothing is left to train"),
        ({"joint": 1}, "CHIP: joint must be true or false, got 1"),
        ({"joint": True, "text_weight": 0}, "CHIP: joint margins include that of the responses: text_weight must be"),
    ],
)
def test_refuses_options_without_a_meaning(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CHIP(**options)
