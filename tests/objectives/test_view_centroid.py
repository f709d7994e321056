"""ViewCentroid against loops in float64: the middle, who is drawn, and how far."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mllm_align.contract import Ragged, Regions, Signals
from mllm_align.objectives import ViewCentroid
from mllm_align.objectives.view_centroid import LEAST_COSINE, view_centroids

# Row and id of each view.
TOLD = [(0, "a")] * 4 + [(0, "b"), (0, ""), (1, "a"), (1, "a"), (1, "c"), (1, "c"), (1, "c"), (0, "b")]


def signals(values: torch.Tensor) -> Signals:
    rows, ids = zip(*TOLD, strict=True)
    none, boxes = ("",) * len(TOLD), ((0.0, 0.0, 1.0, 1.0),) * len(TOLD)
    told = Regions(rows, tuple(range(len(TOLD))), boxes, ids, none, none)
    features = {"regions:image": Ragged(values, torch.tensor(rows))}
    return Signals({}, {}, features=features, sources=("x",) * 2, regions={"image": told})


def drawn(width: int = 4) -> torch.Tensor:
    noise = torch.randn(len(TOLD), width, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    return noise + 0.7


def unit(value: torch.Tensor) -> torch.Tensor:
    return value / math.sqrt(float(value @ value))


def by_loop(values: torch.Tensor, across: bool, outliers: int, neighbours: int) -> tuple[list[float], list[float]]:
    """Per view that is drawn, in order, one less its cosine; and the cosine of every view."""
    things: dict[Any, list[torch.Tensor]] = {}
    for (row, name), value in zip(TOLD, values, strict=True):
        if name:
            things.setdefault(name if across else (row, name), []).append(unit(value))
    losses, everyone = [], []
    for views in things.values():
        if len(views) < 2:
            continue
        middle = torch.zeros_like(views[0])
        for n, view in enumerate(views):
            near = sorted((float(view @ other) for m, other in enumerate(views) if m != n), reverse=True)[:neighbours]
            middle += view / max(sum(near) / len(near), LEAST_COSINE)
        cosines = [float(view @ unit(middle)) for view in views]
        losses += [1 - cosine for cosine in sorted(cosines)[:outliers]]
        everyone += cosines
    return losses, everyone


@pytest.mark.parametrize(("outliers", "neighbours"), [(5, 5), (2, 1), (1, 2)])
@pytest.mark.parametrize("across", [False, True])
def test_the_loss_is_that_of_a_loop(across: bool, outliers: int, neighbours: int) -> None:
    values = drawn()
    objective = ViewCentroid(across_rows=across, outliers=outliers, neighbours=neighbours)
    outcome = objective(signals(values), None)
    losses, everyone = by_loop(values, across, outliers, neighbours)
    (term,) = outcome.terms
    assert term.count == len(losses)
    assert term.sum.item() == pytest.approx(sum(losses))
    assert sorted(outcome.metrics["outliers"].tolist()) == pytest.approx(sorted(1 - loss for loss in losses))
    assert sorted(outcome.metrics["consistency"].tolist()) == pytest.approx(sorted(everyone))
    assert len(losses) < len(everyone) or outliers == 5


def test_the_gradient_is_a_pull_towards_a_fixed_middle() -> None:
    values = drawn().requires_grad_(True)
    ViewCentroid(outliers=2)(signals(values), None).terms[0].sum.backward()
    assert values.grad is not None
    groups = [[0, 1, 2, 3], [4, 11], [6, 7], [8, 9, 10]]
    for group in groups:
        own = torch.stack([unit(values[n].detach()) for n in group])
        middle = view_centroids(own[None], torch.ones(1, len(group), dtype=torch.bool), 5)[0]
        order = sorted(range(len(group)), key=lambda n: float(own[n] @ middle))
        for rank, place in enumerate(order):
            gradient, view = values.grad[group[place]], own[place]
            # Of -cos(v, middle): the part of the middle that is at right angles to v, over |v|.
            pull = -(middle - (middle @ view) * view) / values[group[place]].detach().norm()
            torch.testing.assert_close(gradient, pull if rank < 2 else torch.zeros_like(pull))
    assert not values.grad[5].any()


def test_opposite_views_have_a_middle() -> None:
    views = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]])
    middle = view_centroids(views, torch.ones(1, 3, dtype=torch.bool), 5)
    torch.testing.assert_close(middle, torch.tensor([[0.0, 1.0]]))


def test_things_of_one_view_change_nothing() -> None:
    alone = signals(drawn()).select([0]).select([])
    for given in (Signals({}, {}, sources=("x",)), alone):
        outcome = ViewCentroid()(given, None)
        assert (outcome.loss.item(), outcome.terms[0].count.item()) == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ("images",)}, "columns must be among image, contrast_image"),
        ({"outliers": 0}, "outliers must be a whole number above 0, got 0"),
        ({"neighbours": 1.5}, "neighbours must be a whole number above 0"),
        ({"across_rows": "yes"}, "across_rows must be true or false"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViewCentroid(**options)
