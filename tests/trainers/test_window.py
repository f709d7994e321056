from __future__ import annotations

from typing import Any

import pytest
import torch

from batches import make_batch
from mllm_align.contract import Batch, Branch, Needs, Outcome, Prefix, Signals, Term, View
from mllm_align.objectives.next_token import NextToken
from mllm_align.objectives.svco import SVCO
from mllm_align.objectives.weighted import Weighted
from mllm_align.signals import measure
from mllm_align.trainers.window import Window, count_tokens, plan_window, term_counts, zero_signals
from runs import OWN, Headed
from tiny import tiny


def batch_of(lengths: list[int], source: str = "pairs", views: tuple[View, ...] = (OWN,)) -> Batch:
    ids = torch.arange(5)
    prefixes = tuple(Prefix(ids, (), {}) for _ in lengths)
    branches = tuple(Branch(i, i, view, torch.arange(n)) for i, n in enumerate(lengths) for view in views)
    rows = len(lengths)
    return Batch((source,) * rows, tuple(map(str, range(rows))), (), prefixes, branches, (True,) * rows)


def test_counts_add_up_over_micro_batches() -> None:
    objective = Weighted((SVCO(), 1.0, "pairs"), (NextToken(), 0.5, "instructions"))
    pairs = batch_of([3, 4], views=SVCO().needs.views)
    window = plan_window(objective, [pairs, batch_of([7], "instructions"), batch_of([2, 1], "instructions")])
    assert window.counts == {"svco": 2.0, "next_token": 10.0}
    assert window.rows == 5
    assert window.tokens == 2 * 5 + 6 * (3 + 4) + 5 + 7 + 2 * 5 + 3


def test_shares_add_up_to_the_loss_of_the_window() -> None:
    torch.manual_seed(0)
    lengths = [[3, 9], [1], [5, 2, 2]]
    batches = [batch_of(each) for each in lengths]
    window = plan_window(NextToken(), batches)
    values = [torch.randn(len(each)) for each in lengths]
    shares = [
        window.loss(NextToken()(Signals({OWN: value}, {OWN: batch.num_tokens(OWN)}), None))
        for value, batch in zip(values, batches, strict=True)
    ]
    expected = -sum(value.double().sum() for value in values) / sum(map(sum, lengths))
    assert sum(share.item() for share in shares) == pytest.approx(float(expected), rel=1e-6)


def test_zero_signals_have_the_shape_of_measured_ones(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    batch = make_batch(model, processor, pictures[:2], [((0,), (3, 5)), ((1,), (2,))])
    with torch.no_grad():
        measured, _ = measure(model, batch, tokens=True)
    zeros = zero_signals(batch, tokens=True)
    assert zeros.sources == measured.sources
    assert list(zeros.logps) == list(measured.logps)
    for view in batch.views:
        assert torch.equal(zeros.num_tokens[view], measured.num_tokens[view])
        assert zeros.logps[view].shape == measured.logps[view].shape
        assert zeros.logps[view].dtype == measured.logps[view].dtype
        assert torch.equal(zeros.token_logps[view].row, measured.token_logps[view].row)


class Queue(Headed):
    """Keeps what it saw, and draws random numbers, while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        torch.rand(1)
        self.seen += int(self.training)
        return super().forward(policy, reference)


def test_counting_leaves_no_trace() -> None:
    objective = Queue().train()
    state = torch.get_rng_state()
    assert term_counts(objective, batch_of([3, 4])) == {"headed": 2.0}
    assert objective.seen == 0
    assert objective.training
    assert torch.equal(torch.get_rng_state(), state)


class Twins:
    needs = Needs(views=(OWN,))

    def __call__(self, policy: Signals, reference: Signals | None) -> Outcome:
        term = Term("twin", 1.0, policy.logps[OWN].sum(), policy.has(OWN).sum())
        return Outcome((term, term))


def test_errors() -> None:
    with pytest.raises(ValueError, match="two terms are called 'twin'"):
        term_counts(Twins(), batch_of([1]))
    unforeseen = Outcome((Term("late", 1.0, torch.ones(()), torch.ones(())),))
    with pytest.raises(ValueError, match=r"'late' appeared with values"):
        Window({"early": 1.0}).loss(unforeseen)


def test_an_empty_batch_counts_nothing() -> None:
    empty = batch_of([])
    assert term_counts(NextToken(), empty) == {}
    assert count_tokens(empty) == 0
    assert Window().loss(Outcome(())) == 0
