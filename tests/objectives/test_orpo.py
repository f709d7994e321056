from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from mllm_align.contract import Signals
from mllm_align.objectives import ORPO, NextToken, Weighted
from mllm_align.objectives.orpo import log_odds_ratio, log_one_minus_exp
from ratios import CHOSEN, REJECTED, at, lost


def odds(a: float) -> float:
    return math.exp(a) / (1 - math.exp(a))


def test_needs_no_reference() -> None:
    assert ORPO().needs.views == (CHOSEN, REJECTED)
    assert not ORPO().needs.reference


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_equals_a_loop_over_rows_each_term_with_its_own_count(
    beta: float, make_signals: Callable[..., Signals]
) -> None:
    policy = make_signals(ORPO().needs, rows=8)
    nll = ratio = 0.0
    tokens = 0
    for row in range(8):
        n = {view: int(policy.num_tokens[view][row]) for view in (CHOSEN, REJECTED)}
        a_w, a_l = (policy.logps[view][row].item() / n[view] for view in (CHOSEN, REJECTED))
        ratio += lost(math.log(odds(a_w) / odds(a_l)))
        nll -= policy.logps[CHOSEN][row].item()
        tokens += n[CHOSEN]
    first, second = ORPO(beta=beta)(policy, None).terms
    assert (first.name, first.weight, int(first.count)) == ("nll", 1.0, tokens)
    assert (second.name, second.weight, int(second.count)) == ("odds_ratio", beta, 8)
    assert first.sum.item() == pytest.approx(nll, abs=1e-6)
    assert second.sum.item() == pytest.approx(ratio, abs=1e-6)
    assert ORPO(beta=beta)(policy, None).loss.item() == pytest.approx(nll / tokens + beta * ratio / 8, abs=1e-6)


def test_the_oracle() -> None:
    values = torch.tensor([-1.0, -2.0], dtype=torch.float64)
    assert log_odds_ratio(values[:1], values[1:]).item() == pytest.approx(1.313262, abs=1e-6)
    loss, gradient = at(ORPO(), {CHOSEN: -4.0, REJECTED: -8.0}, tokens=4)
    assert loss == pytest.approx(1.0 + 0.0238183, abs=1e-6)
    assert gradient[CHOSEN] < 0 < gradient[REJECTED]


def test_log_one_minus_exp_is_exact_on_both_sides_and_finite_at_certainty() -> None:
    x = torch.tensor([-50.0, -3.0, -math.log(2), -0.1, -1e-6], dtype=torch.float64, requires_grad=True)
    wanted = [math.log1p(-math.exp(value)) for value in x[:3].tolist()]
    wanted += [math.log(-math.expm1(value)) for value in x[3:].tolist()]
    assert log_one_minus_exp(x).tolist() == pytest.approx(wanted, rel=1e-12)
    assert torch.autograd.gradcheck(log_one_minus_exp, (x[:4].detach().requires_grad_(),))
    certain = torch.zeros(2, requires_grad=True)
    log_odds_ratio(certain[:1], certain[1:]).sum().backward()
    assert torch.isfinite(certain.grad).all()


def test_a_large_gap_keeps_its_gradient_in_float32() -> None:
    a = torch.tensor([-1e-4, -8.0], requires_grad=True)
    torch.nn.functional.logsigmoid(log_odds_ratio(a[:1], a[1:])).sum().backward()
    assert torch.isfinite(a.grad).all()
    assert a.grad[0] > 0 > a.grad[1]


def test_in_a_weighted_sum_its_terms_keep_their_names(make_signals: Callable[..., Signals]) -> None:
    both = Weighted((ORPO(), 2.0, "pairs"), (NextToken(matched=False), 1.0, "instructions"))
    policy = make_signals(both.needs)
    terms = both(policy, None).terms
    assert [(term.name, term.weight) for term in terms] == [
        ("orpo/nll", 2.0),
        ("orpo/odds_ratio", 0.2),
        ("next_token", 1.0),
    ]
    alone = ORPO()(policy.select([0, 2, 4]), None)
    torch.testing.assert_close(terms[0].sum, alone.terms[0].sum)


def test_a_row_without_a_rejected_response_is_in_neither_term(make_signals: Callable[..., Signals]) -> None:
    policy = make_signals(ORPO().needs, rows=3)
    policy.num_tokens[REJECTED][1] = 0
    terms, kept = ORPO()(policy, None).terms, ORPO()(policy.select([0, 2]), None).terms
    for term, wanted in zip(terms, kept, strict=True):
        assert term.count == wanted.count
        torch.testing.assert_close(term.sum, wanted.sum)


def test_metrics() -> None:
    policy = Signals(
        {CHOSEN: torch.tensor([-4.0, -6.0]), REJECTED: torch.tensor([-6.0, -2.0])},
        {CHOSEN: torch.tensor([4, 3]), REJECTED: torch.tensor([3, 2])},
    )
    metrics = ORPO()(policy, None).metrics
    assert metrics["accuracies"].tolist() == [1.0, 0.0]
    assert metrics["nll"].tolist() == [1.0, 2.0]
    assert metrics["log_odds"][0].item() == pytest.approx(1.313262, abs=1e-5)


def test_refuses_a_weight_without_a_meaning() -> None:
    with pytest.raises(ValueError, match="ORPO: beta must be a number above 0, got 0"):
        ORPO(beta=0)
