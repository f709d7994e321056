from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from mllm_align.contract import Needs, Outcome, Ragged, Signals, Term, View, needs_for
from mllm_align.objectives import DPO, SVCO, NextToken, Weighted
from mllm_align.objectives.weighted import class_to_name

OWN, MATCHED = View("image", "chosen"), View("contrast_image", "rejected")
SOURCES = ("pairs", "instructions", "pairs", "other", "instructions", "pairs")


class TwoTerms:
    """A user's own objective: two terms, and it reads its view without asking whether it is there."""

    needs = Needs(views=(View("image", "rejected"),))

    def __call__(self, policy: Signals, reference: Signals | None) -> Outcome:
        logps, num_tokens = policy.logps[self.needs.views[0]], policy.num_tokens[self.needs.views[0]]
        total, count = logps.sum(), (num_tokens > 0).sum()
        return Outcome((Term("two_terms", 1.0, total, count), Term("anchor", 0.5, total * 2, count)), {"seen": logps})


class Scaled(nn.Module):
    """A user's objective with a parameter."""

    needs = Needs(views=(OWN,))

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        return Outcome((Term("scaled", 1.0, self.scale * policy.logps[OWN].sum(), policy.has(OWN).sum()),))


def measured(make_signals: Callable[..., Signals], objective: Weighted) -> tuple[Signals, Signals]:
    """Policy and reference in which rows have the views of their own source alone, as an engine measures them."""
    full = make_signals(objective.needs, sources=SOURCES), make_signals(objective.needs, value_seed=1, sources=SOURCES)
    for signals in full:
        for row, source in enumerate(SOURCES):
            needs = objective.needs_for(source)
            for view in signals.num_tokens:
                if view not in needs.views + needs.optional:
                    signals.num_tokens[view][row] = 0
                    signals.logps[view].data[row] = 0
    return full


def test_each_part_is_the_objective_on_the_rows_of_its_sources(make_signals: Callable[..., Signals]) -> None:
    objective = Weighted((SVCO(), 2.0, "pairs"), (NextToken(), 0.5, ("instructions", "other")))
    policy, reference = measured(make_signals, objective)
    outcome = objective(policy, reference)
    pairs, rest = [0, 2, 5], [1, 3, 4]
    svco = SVCO()(policy.select(pairs), reference.select(pairs))
    tokens = NextToken()(policy.select(rest), None)
    assert [(term.name, term.weight, int(term.count)) for term in outcome.terms] == [
        ("svco", 2.0, 3),
        ("next_token", 0.5, sum(int(policy.num_tokens[view][rest].sum()) for view in (OWN, MATCHED))),
    ]
    torch.testing.assert_close(outcome.loss, 2.0 * svco.loss + 0.5 * tokens.loss)
    torch.testing.assert_close(outcome.metrics["svco/margins/attend"], svco.metrics["margins/attend"])
    torch.testing.assert_close(outcome.metrics["next_token/nll/chosen|image"], tokens.metrics["nll/chosen|image"])


def test_rows_of_another_source_leave_a_term_as_it_is(make_signals: Callable[..., Signals]) -> None:
    objective = Weighted((SVCO(), 1.0, "pairs"), (NextToken(), 1.0, "instructions"))
    policy, reference = measured(make_signals, objective)
    with_rest = objective(policy, reference).terms[0]
    alone = objective(policy.select([0, 2, 5]), reference.select([0, 2, 5])).terms[0]
    torch.testing.assert_close(with_rest.sum, alone.sum)
    assert with_rest.count == alone.count


def test_a_part_without_sources_takes_every_row(make_signals: Callable[..., Signals]) -> None:
    objective = Weighted((DPO(), 1.0), (NextToken(matched=False), 0.25, None))
    policy, reference = make_signals(objective.needs), make_signals(objective.needs, value_seed=1)
    wanted = DPO()(policy, reference).loss + 0.25 * NextToken(matched=False)(policy, None).loss
    for sources in (policy.sources, ()):
        torch.testing.assert_close(objective(replace(policy, sources=sources), reference).loss, wanted)


def test_needs_are_the_union_and_per_source_that_of_its_parts() -> None:
    objective = Weighted((SVCO(), 1.0, "pairs"), (NextToken(), 1.0, ("instructions", "pairs")), (DPO(), 1.0, "text"))
    assert set(objective.needs.views) == set(SVCO().needs.views)
    assert objective.needs.reference
    assert objective.needs_for("instructions") == NextToken().needs
    assert objective.needs_for("text") == DPO().needs
    assert objective.needs_for("pairs") == SVCO().needs | NextToken().needs
    assert objective.needs_for("unheard of") == Needs()
    assert needs_for(objective, "text") == DPO().needs
    assert objective.sources == ("pairs", "instructions", "text")


def test_a_part_without_rows_is_zero_and_differentiable(make_signals: Callable[..., Signals]) -> None:
    objective = Weighted((SVCO(), 1.0, "pairs"), (NextToken(), 1.0, "instructions"))
    policy = make_signals(NextToken().needs, rows=4, sources=["instructions"] * 4)
    for reference in (None, Signals({}, {}, sources=policy.sources)):
        outcome = objective(policy, reference)
        assert outcome.terms[0].name == "svco"
        assert outcome.terms[0].sum == 0
        assert outcome.terms[0].count == 0
        torch.testing.assert_close(outcome.loss, NextToken()(policy, None).loss)
        assert all(torch.isfinite(value).all() for value in outcome.metrics.values())
        assert outcome.metrics["svco/margins/attend_chosen"].numel() == 0
        full = make_signals(objective.needs, sources=SOURCES)
        assert set(outcome.metrics) == set(objective(full, full).metrics), "every rank logs the same names"


def test_a_batch_of_rows_that_no_part_takes_can_go_backward(make_signals: Callable[..., Signals]) -> None:
    policy = make_signals(NextToken().needs, rows=2, sources=["other", "other"])
    outcome = Weighted((SVCO(), 1.0, "pairs"))(policy, None)
    assert outcome.loss == 0
    outcome.loss.backward()
    assert policy.logps[OWN].grad.tolist() == [0.0, 0.0]


def test_a_part_none_of_whose_views_was_measured_can_go_backward(make_signals: Callable[..., Signals]) -> None:
    policy = make_signals(NextToken(matched=False).needs, rows=2)
    outcome = Weighted((TwoTerms(), 1.0))(policy, None)
    assert outcome.loss == 0
    outcome.loss.backward()
    assert policy.logps[OWN].grad.tolist() == [0.0, 0.0]


def test_views_that_were_not_measured_at_all_are_views_that_no_row_has(make_signals: Callable[..., Signals]) -> None:
    objective = Weighted((SVCO(), 1.0), (NextToken(matched=False), 1.0))
    policy, reference = (make_signals(Needs(views=(OWN,)), value_seed=seed) for seed in (0, 1))
    outcome = objective(policy, reference)
    assert int(outcome.terms[0].count) == 0
    torch.testing.assert_close(outcome.loss, NextToken()(policy, None).loss)
    assert objective(Signals({}, {}), None).loss == 0
    assert objective(Signals({}, {}, sources=("a", "b")), None).loss == 0


def test_users_objective_finds_the_views_it_declares(make_signals: Callable[..., Signals]) -> None:
    policy = make_signals(Needs(views=(OWN,)), sources=["instructions"] * 6)
    outcome = Weighted((TwoTerms(), 3.0, "pairs"), (NextToken(), 1.0))(policy, None)
    assert [(term.name, term.weight, int(term.count)) for term in outcome.terms[:2]] == [
        ("two_terms", 3.0, 0),
        ("two_terms/anchor", 1.5, 0),
    ]


def test_a_reference_that_lacks_what_rows_have_is_an_error(make_signals: Callable[..., Signals]) -> None:
    objective = Weighted((DPO(), 1.0, "pairs"))
    policy = make_signals(DPO().needs, sources=SOURCES)
    for reference in (None, Signals({}, {}, sources=SOURCES)):
        with pytest.raises(ValueError, match=r"part 'dpo' compares with a reference, which lacks chosen\|image"):
            objective(policy, reference)


def test_signals_must_say_where_rows_come_from(make_signals: Callable[..., Signals]) -> None:
    policy = replace(make_signals(DPO().needs), sources=())
    with pytest.raises(ValueError, match=r"part 'dpo' is for rows of pairs, but .* source of 0 of 6 rows"):
        Weighted((DPO(), 1.0, "pairs"))(policy, policy)


def test_parts_of_one_class_get_names_of_their_own() -> None:
    parts = Weighted(
        (NextToken(), 1.0, "pairs"),
        (NextToken(), 1.0, ("a", "b")),
        (NextToken(matched=False), 1.0, "pairs"),
        (NextToken(), 1.0),
        (DPO(), 1.0, "pairs"),
    ).parts
    assert [part.name for part in parts] == [
        "next_token_pairs",
        "next_token_a_b",
        "next_token_pairs_2",
        "next_token",
        "dpo",
    ]


def test_nested_sums_multiply_weights_and_keep_sources(make_signals: Callable[..., Signals]) -> None:
    inner = Weighted((DPO(), 0.5, "pairs"), (NextToken(matched=False), 0.25, "instructions"))
    outer = Weighted((inner, 2.0, ("pairs", "instructions")), (TwoTerms(), 1.0, "other"))
    policy, reference = measured(make_signals, outer)
    outcome = outer(policy, reference)
    assert [(term.name, term.weight) for term in outcome.terms] == [
        ("weighted/dpo", 1.0),
        ("weighted/next_token", 0.5),
        ("two_terms", 1.0),
        ("two_terms/anchor", 0.5),
    ]
    assert outer.needs_for("instructions") == NextToken(matched=False).needs
    torch.testing.assert_close(outcome.terms[0].sum, inner(policy, reference).terms[0].sum)


def test_parameters_of_a_part_are_reached_moved_and_saved() -> None:
    part = Scaled()
    objective = Weighted((DPO(), 1.0), (part, 1.0, "pairs"))
    assert [id(parameter) for parameter in objective.parameters()] == [id(part.scale)]
    policy = Signals({OWN: torch.tensor([-3.0])}, {OWN: torch.tensor([2])}, sources=("pairs",))
    Weighted((part, 1.0))(policy, None).loss.backward()
    assert part.scale.grad.item() == -3.0
    other = Weighted((DPO(), 1.0), (Scaled(), 1.0, "pairs"))
    with torch.no_grad():
        part.scale.fill_(5.0)
    other.load_state_dict(objective.state_dict())
    assert other.parts[1].objective.scale.item() == 5.0
    assert objective.double().parts[1].objective.scale.dtype == torch.float64
    assert list(Weighted((DPO(), 1.0)).parameters()) == []


def test_copies_and_pickles_keep_parts_and_parameters_together() -> None:
    objective = Weighted((Scaled(), 1.0, "pairs"), (DPO(beta=0.3), 2.0))
    for twin in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
        assert [part.name for part in twin.parts] == ["scaled", "dpo"]
        assert twin.parts[1].objective == DPO(beta=0.3)
        assert next(twin.parameters()) is twin.parts[0].objective.scale
        assert next(twin.parameters()) is not next(objective.parameters())


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ((), ValueError, "at least one"),
        ((DPO(),), TypeError, "part 1 must be"),
        (((DPO(), 1.0), (DPO(), 1.0, "a", "b")), TypeError, "part 2 must be"),
        (((DPO, 1.0),), TypeError, r"part 1: .* is not an objective.*forgot the \(\)"),
        ((("dpo", 1.0),), TypeError, "'dpo' is not an objective"),
        (((DPO(), "1.0"),), ValueError, "weight must be a number of at least 0, got '1.0'"),
        (((DPO(), -1.0),), ValueError, "weight must be"),
        (((DPO(), float("nan")),), ValueError, "weight must be"),
        (((DPO(), 1.0, ()),), ValueError, "sources must be one name or several"),
        (((DPO(), 1.0, 3),), ValueError, "sources must be one name or several, got 3"),
        (((DPO(), 1.0, ("a", 3)),), ValueError, "sources must be"),
    ],
)
def test_refuses_parts_without_a_meaning(parts: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Weighted(*parts)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("SVCO", "svco"),
        ("NextToken", "next_token"),
        ("InfoNCE", "info_nce"),
        ("DoCo", "do_co"),
        ("MDPOLoss", "mdpo_loss"),
    ],
)
def test_class_to_name(name: str, wanted: str) -> None:
    assert class_to_name(type(name, (), {})) == wanted


def test_repr_tells_what_is_summed() -> None:
    text = repr(Weighted((DPO(), 1.0, "pairs"), (NextToken(), 0.5)))
    assert "dpo: weight 1.0, sources pairs" in text
    assert "next_token: weight 0.5, every source" in text


def test_a_part_without_rows_is_on_the_device_of_what_was_measured() -> None:
    """Where a batch has images alone, no log-probability says which device that is."""
    values = torch.zeros(1, 4, device="meta", requires_grad=True)
    policy = Signals({}, {}, features={"a": Ragged(values, torch.zeros(1, device="meta"))}, sources=("pictures",))
    outcome = Weighted((NextToken(), 1.0), (DPO(), 1.0))(policy, policy)
    for term in outcome.terms:
        assert term.sum.device.type == term.count.device.type == "meta"
        assert term.sum.requires_grad
