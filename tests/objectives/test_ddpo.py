from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from mllm_align.contract import Needs, Signals
from mllm_align.objectives import DDPO, DPO, NextToken, Weighted
from mllm_align.objectives.ddpo import dense_score
from mllm_align.objectives.segments import changed_tokens
from mllm_align.objectives.weighted import class_to_name
from ratios import CHOSEN, REJECTED, lost, tokens_of

SETTINGS = [
    {"beta": 0.5, "gamma": 5.0, "normalise": True},
    {"beta": 0.1, "gamma": 1.1, "normalise": False},
    {"beta": 0.3, "gamma": 0.5, "normalise": True},
]
# Two tokens replaced by one between runs of three; a second row without anything in common.
IDS = {"chosen": [[1, 2, 3, 7, 7, 4, 5, 6], [1, 2]], "rejected": [[1, 2, 3, 9, 4, 5, 6], [3, 4, 5]]}


def tokens(signals: Signals, view: object, row: int) -> list[float]:
    values, of_row = signals.token_logps[view]
    return values[of_row == row].tolist()


def score_by_hand(values: Sequence[float], changed: Sequence[bool], gamma: float, normalise: bool) -> float:
    """The paper's formula, token by token."""
    total = size = 0.0
    for value, flag in zip(values, changed, strict=True):
        weight = gamma if flag else 1.0
        total += weight * value
        size += weight
    return total / size if normalise else total


def by_hand(policy: Signals, reference: Signals, row: int, beta: float, gamma: float, normalise: bool) -> float:
    flags = changed_tokens(policy.host_token_ids[CHOSEN][row], policy.host_token_ids[REJECTED][row])
    score = {}
    for view, own in zip((CHOSEN, REJECTED), flags, strict=True):
        new, old = (score_by_hand(tokens(side, view, row), own, gamma, normalise) for side in (policy, reference))
        score[view] = new - old
    return lost(beta * (score[CHOSEN] - score[REJECTED]))


def test_needs_tokens_and_has_the_papers_numbers() -> None:
    assert DDPO() == DDPO(**SETTINGS[0])
    assert DDPO().needs.views == (CHOSEN, REJECTED)
    assert DDPO().needs.tokens
    assert DDPO().needs.reference
    assert class_to_name(DDPO) == "ddpo"


@pytest.mark.parametrize("options", SETTINGS)
def test_equals_a_loop_over_tokens(options: dict, make_signals: Callable[..., Signals]) -> None:
    objective = DDPO(**options)
    policy, reference = make_signals(objective.needs, rows=12), make_signals(objective.needs, rows=12, value_seed=1)
    total = sum(by_hand(policy, reference, row, **options) for row in range(12))
    outcome = objective(policy, reference)
    assert outcome.loss.item() == pytest.approx(total / 12, abs=1e-6)
    assert outcome.terms[0].sum.item() == pytest.approx(total, abs=1e-6)
    assert (outcome.terms[0].name, int(outcome.terms[0].count)) == ("ddpo", 12)


def test_step_zero_is_log_two_and_changed_tokens_move_gamma_times_as_much() -> None:
    values = {CHOSEN: [[-1.0] * 8, [-1.0] * 2], REJECTED: [[-1.0] * 7, [-1.0] * 3]}
    policy = tokens_of(values, IDS)
    outcome = DDPO(beta=0.5, gamma=5.0)(policy, tokens_of(values, IDS))
    assert outcome.loss.item() == pytest.approx(0.693147, abs=1e-6)
    outcome.loss.backward()
    chosen = policy.token_logps[CHOSEN].values.grad[:8]
    # beta / 2 over two rows, N = 6 + 5 * 2.
    unchanged = -0.5 / 2 / 2 / 16
    assert chosen.tolist() == pytest.approx([unchanged] * 3 + [5 * unchanged] * 2 + [unchanged] * 3)
    assert policy.token_logps[REJECTED].values.grad[3].item() == pytest.approx(0.5 / 2 / 2 * 5 / 11)


def test_at_gamma_one_it_is_dpo(make_signals: Callable[..., Signals]) -> None:
    policy, reference = make_signals(DDPO().needs), make_signals(DDPO().needs, value_seed=1)
    plain = DDPO(gamma=1.0, beta=0.3, normalise=False)(policy, reference)
    torch.testing.assert_close(plain.loss, DPO(beta=0.3)(policy, reference).loss)
    normalised = DDPO(gamma=1.0, beta=0.3)(policy, reference)
    torch.testing.assert_close(normalised.loss, DPO(beta=0.3, loss_type="sigmoid_norm")(policy, reference).loss)


def test_a_constant_in_policy_and_reference_alike_changes_nothing() -> None:
    values = {CHOSEN: [[-1.0] * 8, [-2.0] * 2], REJECTED: [[-3.0] * 7, [-1.0] * 3]}
    start = {CHOSEN: [[-2.0] * 8, [-2.5] * 2], REJECTED: [[-1.0] * 7, [-1.5] * 3]}

    def moved(given: dict) -> Signals:
        shifts = ((view, {CHOSEN: 4.0, REJECTED: -1.0}[view]) for view in given)
        return tokens_of({view: [[x + shift for x in row] for row in given[view]] for view, shift in shifts}, IDS)

    before = DDPO()(tokens_of(values, IDS), tokens_of(start, IDS)).loss.item()
    assert DDPO()(moved(values), moved(start)).loss.item() == pytest.approx(before, abs=1e-9)


def test_metrics_tell_the_share_of_changed_tokens() -> None:
    values = {CHOSEN: [[-1.0] * 8, [-1.0] * 2], REJECTED: [[-1.0] * 7, [-1.0] * 3]}
    metrics = DDPO()(tokens_of(values, IDS), tokens_of(values, IDS)).metrics
    assert metrics["changed/chosen"].tolist() == pytest.approx([0.25, 1.0])
    assert metrics["changed/rejected"].tolist() == pytest.approx([1 / 7, 1.0])
    assert metrics["rewards/accuracies"].tolist() == [0.0, 0.0]
    assert metrics["logps/chosen"].tolist() == [-8.0, -2.0]


def test_in_a_weighted_sum_it_sees_the_tokens_of_its_rows(make_signals: Callable[..., Signals]) -> None:
    both = Weighted((DDPO(), 1.0, "pairs"), (NextToken(matched=False), 1.0, "instructions"))
    policy, reference = make_signals(both.needs), make_signals(both.needs, value_seed=1)
    outcome = both(policy, reference)
    wanted = sum(by_hand(policy, reference, row, **SETTINGS[0]) for row in (0, 2, 4))
    assert outcome.terms[0].sum.item() == pytest.approx(wanted, abs=1e-6)


def test_in_a_weighted_sum_without_a_row_of_its_own_it_is_zero(make_signals: Callable[..., Signals]) -> None:
    both = Weighted((DDPO(), 1.0, "pairs"), (NextToken(matched=False), 1.0, "instructions"))
    measured = NextToken(matched=False).needs | Needs(tokens=True)
    policy = make_signals(measured, rows=3, sources=["instructions"] * 3)
    outcome = both(policy, None)
    assert outcome.terms[0].sum == 0
    assert int(outcome.terms[0].count) == 0
    outcome.loss.backward()
    assert policy.logps[CHOSEN].grad.any()


def test_dense_score_passes_gradcheck() -> None:
    whole, changed = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    size = torch.tensor([3.0, 4.0, 9.0, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: dense_score(a, b, gamma=5.0, size=size), (whole, changed))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0}, "DDPO: beta must be a number above 0"),
        ({"gamma": -1}, "DDPO: gamma must be a number above 0, got -1"),
        ({"normalise": "yes"}, "DDPO: normalise must be true or false"),
    ],
)
def test_refuses_options_without_a_meaning(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DDPO(**options)
