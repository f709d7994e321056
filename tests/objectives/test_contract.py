"""What every objective must do; objectives are found by looking, so a new one is held to it from its first day."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import mllm_align.objectives
from mllm_align.contract import Needs, Objective, Outcome, Ragged, Signals, View
from mllm_align.objectives import (
    CHIP,
    DDPO,
    DPO,
    MDPO,
    SVCO,
    VDPO,
    ImagePreference,
    InfoNCE,
    NextToken,
    RegionContrast,
    RegionText,
    SigLIP,
    Weighted,
)
from mllm_align.objectives.dpo_losses import VARIANTS
from mllm_align.objectives.options import WithOptions
from mllm_align.objectives.pairs import IMAGE_PROMPT, TEXT_PROMPT

MODULES = [
    importlib.import_module(f"mllm_align.objectives.{info.name}")
    for info in pkgutil.iter_modules(mllm_align.objectives.__path__)
]
CLASSES = [
    kind
    for module in MODULES
    for kind in vars(module).values()
    if inspect.isclass(kind) and kind.__module__ == module.__name__ and hasattr(kind, "needs")
]
SUMMARIES: dict[str, Any] = {"image_prompt": IMAGE_PROMPT, "text_prompt": TEXT_PROMPT, "text": "caption"}
# Beside every class with its defaults: options that change the maths, and classes that have no defaults.
CASES: dict[str, Callable[[], Objective]] = {kind.__name__: kind for kind in CLASSES if kind is not Weighted} | {
    **{
        f"DPO-{name}": partial(DPO, loss_type=name, label_smoothing=0.1 * ("label_smoothing" in variant.options))
        for name, variant in VARIANTS.items()
    },
    "MDPO-image": lambda: MDPO(text_weight=0, anchor_weight=0.5),
    "ImagePreference-both_ways": lambda: ImagePreference(both_ways=True),
    "VDPO-blank": lambda: VDPO(image_free="contrast_image", gamma=0.5),
    "CHIP-joint": lambda: CHIP(joint=True),
    "CHIP-segment": lambda: CHIP(text_weight=0, image_weight=0),
    "CHIP-sums": lambda: CHIP(segment_weight=0),
    "DDPO-sums": lambda: DDPO(gamma=1.1, beta=0.1, normalise=False),
    "InfoNCE-dcl": InfoNCE.dcl,
    "InfoNCE-dclw": InfoNCE.dclw,
    "InfoNCE-hcl": InfoNCE.hcl,
    "InfoNCE-hn_nce_like": InfoNCE.hn_nce_like,
    "InfoNCE-uni_me": partial(InfoNCE.uni_me, hardest=3),
    "InfoNCE-negclip": partial(InfoNCE.negclip, **SUMMARIES, dim=5, dimensions=(2, 3)),
    "InfoNCE-query": partial(InfoNCE, **SUMMARIES, pooling="query"),
    "InfoNCE-tiles": partial(InfoNCE, **SUMMARIES, negatives=True, tile=4),
    "NextToken-own": lambda: NextToken(matched=False),
    "RegionContrast-pair": lambda: RegionContrast(negatives="pair", normalise=False, temperature=1.0),
    "RegionContrast-both": lambda: RegionContrast(columns=("image", "contrast_image"), negatives="row"),
    "RegionText-plain": lambda: RegionText(columns=("image", "contrast_image"), sides="region_to_text", dim=None),
    "RegionText-sigmoid": lambda: RegionText(loss="sigmoid", dim=4),
    "RegionText-decoupled": lambda: RegionText(decoupled=True, overlap=1.0),
    "SigLIP-negatives": partial(SigLIP, **SUMMARIES, negatives=True, dim=5, dimensions=(2,)),
    "SVCO-betas": lambda: SVCO(beta_attend=0.3, beta_reject=0.7),
    "SVCO-chosen": lambda: SVCO(symmetric=False),
    "SVCO-attend": lambda: SVCO(reject_weight=0),
    "Weighted": lambda: Weighted((SVCO(), 1.0, "pairs"), (NextToken(), 0.5, "instructions"), (DPO(), 0.1)),
    "Weighted-regions": lambda: Weighted((RegionContrast(), 1.0, "pairs"), (NextToken(matched=False), 0.5)),
    "Weighted-tokens": lambda: Weighted((CHIP(), 1.0, "pairs"), (NextToken(), 0.5, "instructions"), (DDPO(), 0.1)),
}
# Of features, as `make_signals` makes them.
WIDTH = 8
# Views that are read as constants: no gradient reaches them, and finite differences of the loss are not the gradient.
STOPPED = {VDPO: lambda objective: objective.needs.views[2:]}


@pytest.fixture(params=CASES, ids=list(CASES))
def objective(request: pytest.FixtureRequest) -> Objective:
    torch.manual_seed(0)
    return ready(CASES[request.param]())


def ready(objective: Objective) -> Objective:
    """With its heads made, where it has any."""
    if hasattr(objective, "set_widths"):
        objective.set_widths({feature.name: WIDTH for feature in objective.needs.features})
    return objective


def call(objective: Objective, policy: Signals, reference: Signals) -> Outcome:
    return objective(policy, reference if objective.needs.reference else None)


def moving(objective: Objective) -> list[View]:
    """The views that a gradient must reach."""
    stopped = STOPPED[type(objective)](objective) if type(objective) in STOPPED else ()
    needs = objective.needs
    return [view for view in needs.views + needs.optional if view not in stopped]


def gradient(signals: Signals, view: View) -> torch.Tensor:
    """Of all that was measured of a view, sums and tokens, one behind the other; zeros where nothing arrived."""
    measured = [signals.logps[view], *(signals.token_logps[view][:1] if view in signals.token_logps else ())]
    return torch.cat([torch.zeros_like(value) if value.grad is None else value.grad for value in measured])


def changed(signals: Signals, change: Callable[[torch.Tensor], torch.Tensor]) -> Signals:
    """Every measured value replaced, the counts kept."""
    return replace(
        signals,
        logps={view: change(value.detach()) for view, value in signals.logps.items()},
        token_logps={view: Ragged(change(item.values), item.row) for view, item in signals.token_logps.items()},
        features={name: Ragged(change(item.values), item.row) for name, item in signals.features.items()},
    )


class Recorder(Mapping):
    """Remembers which keys were read, and refuses those that were not declared."""

    def __init__(self, content: Mapping, allowed: set) -> None:
        self.content, self.allowed, self.read = content, allowed, set()

    def __getitem__(self, key: Any) -> Any:
        assert key in self.allowed, f"{key} was read but not declared"
        self.read.add(key)
        return self.content[key]

    def __iter__(self) -> Iterator:
        raise AssertionError("an objective reads what it declares by name; it does not list what there is")

    def __len__(self) -> int:
        return len(self.content)


def test_every_objective_is_found() -> None:
    assert {SVCO, DPO, NextToken, Weighted} <= set(CLASSES)
    assert {kind.__name__ for kind in CLASSES} == set(mllm_align.objectives.__all__)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_module_has_its_own_test_file_and_its_doctests_pass(module: Any) -> None:
    name = module.__name__.rpartition(".")[2]
    assert (Path(__file__).parent / f"test_{name}.py").is_file()
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("kind", CLASSES)
def test_docstring_is_a_product_page(kind: type) -> None:
    page = inspect.getdoc(kind) or ""
    assert "https://arxiv.org/abs/" in page.split("\n\n")[0], "the first line names method and paper with a link"
    for section in ("Args:", "Needs:", "Shapes:", "Example:", "Relations:", "Deviations:"):
        assert f"\n{section}\n" in page, f"{kind.__name__} says nothing under {section}"
    assert ">>>" in page.split("\nExample:\n")[1]


def test_follows_the_protocol(objective: Objective) -> None:
    assert isinstance(objective, Objective)
    assert isinstance(objective.needs, Needs)


def test_tells_every_option_that_is_something(objective: Objective) -> None:
    """Dataclasses do by themselves, and a weighted sum lists its parts."""
    if dataclasses.is_dataclass(objective) or isinstance(objective, Weighted):
        return
    assert isinstance(objective, WithOptions)
    told = objective.extra_repr()
    for name, item in inspect.signature(type(objective)).parameters.items():
        given = item.kind is not item.VAR_KEYWORD and objective.options[name] not in (None, ())
        assert (f"{name}=" in told) >= given, name


def test_finite_and_differentiable_in_every_view(objective: Objective, make_signals: Callable[..., Signals]) -> None:
    policy, reference = make_signals(objective.needs), make_signals(objective.needs, value_seed=1)
    outcome = call(objective, policy, reference)
    assert outcome.loss.shape == ()
    assert torch.isfinite(outcome.loss)
    outcome.loss.backward()
    for view in policy.logps:
        assert torch.isfinite(gradient(policy, view)).all(), view
        # S-VCO's no-image scores cancel where policy equals reference; here they differ: every view has a gradient.
        assert bool(gradient(policy, view).any()) == (view in moving(objective)), view
        assert not gradient(reference, view).any(), "the reference is frozen"
    for name, value in outcome.metrics.items():
        assert not value.requires_grad, name
        assert torch.isfinite(value).all(), name


def test_gradient_is_that_of_finite_differences(objective: Objective, make_signals: Callable[..., Signals]) -> None:
    policy, reference = make_signals(objective.needs, rows=4), make_signals(objective.needs, rows=4, value_seed=1)
    views, names = moving(objective), list(policy.features)

    def loss(*values: torch.Tensor) -> torch.Tensor:
        left = iter(values)
        logps = {**policy.logps, **{view: next(left) for view in views}}
        features = {name: Ragged(next(left), policy.features[name].row) for name in names}
        tokens = {view: Ragged(next(left), ragged.row) for view, ragged in policy.token_logps.items()}
        return call(objective, replace(policy, logps=logps, features=features, token_logps=tokens), reference).loss

    if isinstance(objective, torch.nn.Module):
        objective.double()
    ragged = (*policy.features.values(), *policy.token_logps.values())
    measured = [*(policy.logps[view] for view in views), *(each.values.requires_grad_() for each in ragged)]
    assert torch.autograd.gradcheck(loss, tuple(measured))


def test_a_constant_in_policy_and_reference_alike_changes_nothing(
    objective: Objective, make_signals: Callable[..., Signals]
) -> None:
    """Each response gets one of its own, in every view and on every token: only the differences count."""
    if not objective.needs.reference or isinstance(objective, Weighted):
        pytest.skip("compares with no reference, or has a part that does not")
    policy, reference = make_signals(objective.needs), make_signals(objective.needs, value_seed=1)

    def moved(signals: Signals) -> Signals:
        offset = {view: {"chosen": 17.0, "rejected": -40.0}[view.response] for view in signals.logps}
        tokens = {view: Ragged(own.values + offset[view], own.row) for view, own in signals.token_logps.items()}
        logps = {view: own + offset[view] * signals.num_tokens[view] for view, own in signals.logps.items()}
        return replace(signals, logps=logps, token_logps=tokens)

    before, after = call(objective, policy, reference), call(objective, moved(policy), moved(reference))
    torch.testing.assert_close(after.loss, before.loss)
    for name in (name for name in before.metrics if name.startswith(("losses/", "margins/", "rewards/"))):
        torch.testing.assert_close(after.metrics[name], before.metrics[name])


def test_order_of_rows_does_not_matter(objective: Objective, make_signals: Callable[..., Signals]) -> None:
    policy, reference = make_signals(objective.needs), make_signals(objective.needs, value_seed=1)
    order = [3, 0, 5, 1, 4, 2]
    before = call(objective, policy, reference)
    after = call(objective, policy.select(order), reference.select(order))
    torch.testing.assert_close(before.loss, after.loss)
    for name, value in before.metrics.items():
        torch.testing.assert_close(value.flatten().sort().values, after.metrics[name].flatten().sort().values)


def test_a_sum_over_rows_splits_into_micro_batches(objective: Objective, make_signals: Callable[..., Signals]) -> None:
    if objective.needs.features:
        pytest.skip("the rows of one batch are each other's negatives")
    policy, reference = make_signals(objective.needs), make_signals(objective.needs, value_seed=1)
    whole = call(objective, policy, reference)
    pieces = [call(objective, policy.select(rows), reference.select(rows)) for rows in ([0, 1, 2, 3], [4], [5])]
    for index, term in enumerate(whole.terms):
        assert term.count == sum(piece.terms[index].count for piece in pieces)
        torch.testing.assert_close(term.sum, torch.stack([piece.terms[index].sum for piece in pieces]).sum())


def test_bfloat16_is_computed_in_float32(objective: Objective, make_signals: Callable[..., Signals]) -> None:
    policy = make_signals(objective.needs, dtype=torch.bfloat16)
    reference = make_signals(objective.needs, dtype=torch.bfloat16, value_seed=1)
    got = call(objective, policy, reference)
    wanted = call(objective, changed(policy, torch.Tensor.double), changed(reference, torch.Tensor.double))
    for term, exact in zip(got.terms, wanted.terms, strict=True):
        assert term.sum.dtype == torch.float32
        torch.testing.assert_close(term.sum.double(), exact.sum.double(), rtol=1e-5, atol=1e-5)


def test_reads_exactly_what_it_declares(objective: Objective, make_signals: Callable[..., Signals]) -> None:
    needs = objective.needs
    declared = set(needs.views + needs.optional)
    more = needs | Needs(
        views=tuple(
            View(image, text) for image in ("image", None, "contrast_image") for text in ("chosen", "rejected")
        )
    )

    def recorded(signals: Signals) -> Signals:
        return replace(
            signals,
            logps=Recorder(signals.logps, declared),
            num_tokens=Recorder(signals.num_tokens, declared),
            token_logps=Recorder(signals.token_logps, declared if needs.tokens else set()),
            host_token_ids=Recorder(signals.host_token_ids, declared if needs.tokens else set()),
            features=Recorder(signals.features, {feature.name for feature in needs.features}),
        )

    policy, reference = recorded(make_signals(more)), recorded(make_signals(more, value_seed=1))
    call(objective, policy, reference)
    assert policy.logps.read | policy.token_logps.read == declared
    assert bool(policy.token_logps.read) == bool(policy.host_token_ids.read) == needs.tokens
    assert policy.features.read == {feature.name for feature in needs.features}
    assert bool(reference.logps.read) == needs.reference


def test_counts_do_not_depend_on_values(objective: Objective, make_signals: Callable[..., Signals]) -> None:
    policy, reference = make_signals(objective.needs), make_signals(objective.needs, value_seed=1)
    measured = call(objective, policy, reference)
    zeros = call(objective, changed(policy, torch.zeros_like), changed(reference, torch.zeros_like))
    assert [(term.name, term.weight, int(term.count)) for term in measured.terms] == [
        (term.name, term.weight, int(term.count)) for term in zeros.terms
    ]
    assert len({term.name for term in measured.terms}) == len(measured.terms)
    assert all(term.count.shape == () and term.count > 0 for term in measured.terms)


def test_rows_without_its_views_change_nothing(objective: Objective, make_signals: Callable[..., Signals]) -> None:
    policy, reference = make_signals(objective.needs), make_signals(objective.needs, value_seed=1)
    kept = [0, 1, 3, 4]

    def without(signals: Signals) -> Signals:
        gone = torch.tensor([False, False, True, False, False, True])
        ragged = signals.token_logps.items()
        ids = signals.host_token_ids.items()
        return replace(
            signals,
            logps={view: value.detach().masked_fill(gone, 0.0) for view, value in signals.logps.items()},
            num_tokens={view: count.masked_fill(gone, 0) for view, count in signals.num_tokens.items()},
            token_logps={v: Ragged(own.values[~gone[own.row]], own.row[~gone[own.row]]) for v, own in ragged},
            host_token_ids={v: [row if n in kept else () for n, row in enumerate(own)] for v, own in ids},
        )

    if objective.needs.features:
        pytest.skip("rows are left out by their token counts, which features do not have")
    got = call(objective, without(policy), without(reference))
    wanted = call(objective, policy.select(kept), reference.select(kept))
    torch.testing.assert_close(got.loss, wanted.loss)
    assert [int(term.count) for term in got.terms] == [int(term.count) for term in wanted.terms]
    for name, value in got.metrics.items():
        torch.testing.assert_close(value, wanted.metrics[name].detach(), msg=name)


def test_empty_batch_is_zero_and_differentiable(objective: Objective, make_signals: Callable[..., Signals]) -> None:
    full = call(objective, make_signals(objective.needs), make_signals(objective.needs, value_seed=1))
    policy, reference = make_signals(objective.needs, rows=0), make_signals(objective.needs, rows=0, value_seed=1)
    outcome = call(objective, policy, reference)
    assert outcome.loss == 0
    assert [term.name for term in outcome.terms] == [term.name for term in full.terms]
    assert all(term.count == 0 and term.sum == 0 for term in outcome.terms)
    assert not any(torch.isnan(value).any() for value in outcome.metrics.values())
    outcome.loss.backward()
