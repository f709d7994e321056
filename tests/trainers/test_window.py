from __future__ import annotations

from typing import Any

import pytest
import torch

from batches import make_batch
from mllm_align.contract import Batch, Branch, Needs, Outcome, Prefix, Signals, Term, View
from mllm_align.data.collator import AlignCollator
from mllm_align.families import family_of
from mllm_align.objectives.ddpo import DDPO
from mllm_align.objectives.info_nce import InfoNCE
from mllm_align.objectives.next_token import NextToken
from mllm_align.objectives.svco import SVCO
from mllm_align.objectives.weighted import Weighted
from mllm_align.signals import measure
from mllm_align.signals.features import scored_views
from mllm_align.trainers.window import Window, count_tokens, plan_window, term_counts, zero_signals
from runs import OWN, Headed, pair_rows
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
    assert zeros.host_token_ids == measured.host_token_ids
    assert zero_signals(batch).host_token_ids == {}


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


def test_an_objective_with_parameters_is_counted_where_they_are() -> None:
    """Its counts stay tensors, and divide as numbers do; a term with nothing to count is divided by one."""
    objective = Headed()
    batches = [batch_of([3, 4]), batch_of([]), batch_of([5])]
    planned = plan_window(objective, batches)
    assert isinstance(planned.counts["headed"], torch.Tensor)
    assert planned.counts == {"headed": 3.0}
    outcome = objective(zero_signals(batches[0]), None)
    assert torch.equal(planned.loss(outcome), Window({"headed": 3.0}).loss(outcome))
    assert torch.equal(Window({"headed": torch.zeros(())}).loss(outcome), Window({"headed": 0.0}).loss(outcome))
    assert plan_window(objective, batches[1:2]).counts == {}


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


def test_an_objective_of_tokens_is_counted_before_it_is_measured() -> None:
    """Which tokens differ is read off the ids, which are there without any model."""
    batch = batch_of([3, 4], views=DDPO().needs.views)
    assert term_counts(DDPO(), batch) == {"ddpo": 2.0}
    assert term_counts(Weighted((DDPO(), 1.0, "other"), (NextToken(), 1.0)), batch) == {"ddpo": 0.0, "next_token": 7.0}


def test_zero_signals_of_features_have_the_shape_of_measured_ones() -> None:
    """A response that is read for a feature alone has no tokens, under either."""
    objective = Weighted((InfoNCE(), 1.0), (NextToken(matched=False), 1.0))
    model, processor = tiny("llava")
    family, needs = family_of(model), objective.needs
    collator = AlignCollator(processor, objective.needs_for, family.image_keys, family.token_keys)
    batch = collator(pair_rows(2) + pair_rows(1, images=False))["batch"]
    scored = scored_views(needs)
    with torch.no_grad():
        measured, _ = measure(model, batch, features=needs.features, scored=scored)
    zeros = zero_signals(batch, features=needs.features, width=64, scored=scored)
    assert zeros.host_num_tokens == measured.host_num_tokens
    assert zeros.host_num_tokens[View(None, "chosen")][:2] == (0, 0)
    for view in batch.views:
        assert torch.equal(zeros.num_tokens[view], measured.num_tokens[view])
    assert dict(zeros.host_feature_rows) == dict(measured.host_feature_rows)
    assert dict(zeros.host_feature_ids) == dict(measured.host_feature_ids)
    for name, ragged in measured.features.items():
        assert zeros.features[name].values.shape == ragged.values.shape
        assert torch.equal(zeros.features[name].row, ragged.row)
