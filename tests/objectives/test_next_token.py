from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mllm_align.contract import Signals, View
from mllm_align.objectives.next_token import NextToken, next_token_loss

OWN, MATCHED = View("image", "chosen"), View("contrast_image", "rejected")


def test_needs_both_matched_views_the_second_where_there_is_one() -> None:
    assert NextToken().needs.views == (OWN,)
    assert NextToken().needs.optional == (MATCHED,)
    assert not NextToken().needs.reference
    assert NextToken(matched=False).needs.optional == ()


@pytest.mark.parametrize("matched", [True, False])
def test_equals_the_mean_over_tokens_of_a_loop(matched: bool, make_signals: Callable[..., Signals]) -> None:
    signals = make_signals(NextToken().needs, rows=9)
    total, tokens = 0.0, 0
    for row in range(9):
        for view in (OWN, MATCHED) if matched else (OWN,):
            if signals.num_tokens[view][row] > 0:
                total -= signals.logps[view][row].item()
                tokens += int(signals.num_tokens[view][row])
    outcome = NextToken(matched=matched)(signals, None)
    assert outcome.loss.item() == pytest.approx(total / tokens, abs=1e-6)
    assert outcome.terms[0].sum.item() == pytest.approx(total, abs=1e-6)
    assert int(outcome.terms[0].count) == tokens


def test_is_the_cross_entropy_of_a_vocabulary() -> None:
    torch.manual_seed(0)
    logits = torch.randn(11, 50, dtype=torch.float64)
    labels = torch.randint(50, (11,))
    per_token = torch.log_softmax(logits, -1)[torch.arange(11), labels]
    logps = torch.stack([per_token[:3].sum(), per_token[3:].sum()])
    outcome = NextToken()(Signals({OWN: logps}, {OWN: torch.tensor([3, 8])}), None)
    torch.testing.assert_close(outcome.loss, torch.nn.functional.cross_entropy(logits, labels))


def test_long_responses_weigh_more_than_short_ones() -> None:
    signals = Signals({OWN: torch.tensor([-10.0, -1.0])}, {OWN: torch.tensor([9, 1])})
    assert NextToken()(signals, None).loss.item() == pytest.approx(1.1)


def test_optional_view_may_be_unmeasured_and_required_may_not() -> None:
    own = Signals({OWN: torch.tensor([-4.0])}, {OWN: torch.tensor([2])})
    assert NextToken()(own, None).loss.item() == 2.0
    with pytest.raises(ValueError, match=r"not measured: chosen\|image \(measured: rejected\|contrast_image\)"):
        NextToken()(Signals({MATCHED: torch.tensor([-4.0])}, {MATCHED: torch.tensor([2])}), None)


def test_metrics_are_per_row_and_per_view() -> None:
    signals = Signals(
        {OWN: torch.tensor([-4.0, -3.0, 0.0]), MATCHED: torch.tensor([0.0, -10.0, 0.0])},
        {OWN: torch.tensor([2, 3, 0]), MATCHED: torch.tensor([0, 5, 0])},
    )
    metrics = NextToken()(signals, None).metrics
    assert metrics["nll/chosen|image"].tolist() == [2.0, 1.0]
    assert metrics["nll/rejected|contrast_image"].tolist() == [2.0]
    assert metrics["tokens"].tolist() == [2.0, 8.0]


def test_what_an_absent_response_holds_is_not_read() -> None:
    logps = torch.tensor([-4.0, float("nan")], requires_grad=True)
    total, count = next_token_loss(logps, torch.tensor([2, 0]))
    assert (total.item(), int(count)) == (4.0, 2)
    total.backward()
    assert logps.grad.tolist() == [-1.0, 0.0]


def test_next_token_loss_passes_gradcheck() -> None:
    logps = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: next_token_loss(value, torch.tensor([1, 0, 3, 2, 0]))[0], logps)


def test_refuses_a_matched_that_is_no_truth_value() -> None:
    with pytest.raises(ValueError, match="matched must be true or false, got 'no'"):
        NextToken(matched="no")
