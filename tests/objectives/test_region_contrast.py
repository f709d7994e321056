"""RegionContrast against loops in float64: which pairs there are, and the loss over them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from mllm_align.contract import Ragged, Regions, Signals
from mllm_align.objectives import RegionContrast
from mllm_align.objectives.contrast_kernels import softmax_contrast

BOX = (0.0, 0.0, 0.2, 0.2)
# Row, image, id, text, box.
TOLD: tuple[tuple[Any, ...], ...] = (
    (0, 0, "a", "", BOX),
    (0, 0, "b", "", (0.5, 0.5, 0.9, 0.9)),
    (0, 0, "part of b", "", (0.6, 0.6, 0.7, 0.95)),
    (0, 1, "a", "", BOX),
    (0, 1, "b", "cup", (0.5, 0.0, 0.9, 0.4)),
    (0, 1, "", "Cup", (0.5, 0.5, 0.9, 0.9)),
    (1, 0, "a", "cup", BOX),
    (1, 1, "c", "", BOX),
    (1, 1, "a", "", (0.5, 0.5, 0.9, 0.9)),
    (2, 0, "alone", "", BOX),
)


def told(entries: Any = TOLD) -> Regions:
    row, image, ids, texts, boxes = zip(*entries, strict=True)
    return Regions(row, image, boxes, ids, texts, ("",) * len(entries))


def signals(values: torch.Tensor, regions: Regions) -> Signals:
    features = {"regions:image": Ragged(values, torch.tensor(regions.row))}
    return Signals({}, {}, features=features, sources=("x",) * 3, regions={"image": regions})


def share_inside(one: Any, other: Any) -> float:
    """By counting points of the smaller box in the other."""
    small, large = sorted((one, other), key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
    points = [
        (small[0] + (x + 0.5) / 40 * (small[2] - small[0]), small[1] + (y + 0.5) / 40 * (small[3] - small[1]))
        for x in range(40)
        for y in range(40)
    ]
    return sum(large[0] < x < large[2] and large[1] < y < large[3] for x, y in points) / len(points)


def pairs_by_loop(scope: str) -> tuple[list[list[int]], list[list[int]]]:
    """Per anchor its positives and its negatives."""
    positives: list[list[int]] = []
    negatives: list[list[int]] = []
    for n, (row, image, name, text, box) in enumerate(TOLD):
        positives.append([])
        negatives.append([])
        for m, (other_row, other_image, other_name, other_text, other_box) in enumerate(TOLD):
            if n == m:
                continue
            if row == other_row and name == other_name and name and image != other_image:
                positives[-1].append(m)
                continue
            same_text = text != "" and text.lower() == other_text.lower()
            if same_text or (row == other_row and name == other_name):
                continue
            if row != other_row:
                if scope == "batch":
                    negatives[-1].append(m)
            elif image != other_image or (scope != "pair" and share_inside(box, other_box) <= 0.5):
                negatives[-1].append(m)
    return positives, negatives


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("scope", ["pair", "row", "batch"])
def test_the_loss_is_that_of_a_loop(scope: str, normalise: bool) -> None:
    values = torch.randn(len(TOLD), 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    objective = RegionContrast(negatives=scope, temperature=0.5, normalise=normalise)
    outcome = objective(signals(values, told()), None)
    positives, negatives = pairs_by_loop(scope)
    losses, right, counts, gaps = [], [], [], []
    for n in range(len(TOLD)):
        if not positives[n] or not negatives[n]:
            continue
        norms = [math.sqrt(float(value @ value)) if normalise else 1.0 for value in values]
        cosine = [float(values[n] @ values[m]) / norms[n] / norms[m] for m in range(len(TOLD))]
        each = []
        for p in positives[n]:
            below = math.exp(cosine[p] / 0.5) + sum(math.exp(cosine[m] / 0.5) for m in negatives[n])
            each.append(-math.log(math.exp(cosine[p] / 0.5) / below))
        losses.append(sum(each) / len(each))
        right.append(float(max(cosine[p] for p in positives[n]) > max(cosine[m] for m in negatives[n])))
        counts.append(float(len(negatives[n])))
        means = [sum(cosine[m] for m in own) / len(own) for own in (positives[n], negatives[n])]
        gaps.append(means[0] - means[1])
    (term,) = outcome.terms
    assert term.count == len(losses) >= 5
    assert term.sum.item() == pytest.approx(sum(losses), abs=1e-6)
    assert outcome.metrics["accuracy"].tolist() == right
    assert outcome.metrics["negatives"].tolist() == counts
    assert outcome.metrics["gap"].tolist() == pytest.approx(gaps)
    assert outcome.metrics["temperature"].item() == pytest.approx(0.5)


def test_colva_s_own_form() -> None:
    similarities = torch.tensor([[0.0, 2.0, -1.0], [2.0, 0.0, 0.5], [-1.0, 0.5, 0.0]], dtype=torch.float64)
    positive = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 1, 0]], dtype=torch.bool)
    negative = torch.tensor([[0, 0, 1], [1, 0, 1], [0, 0, 0]], dtype=torch.bool)
    losses = softmax_contrast(similarities, positive, negative)
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(-1.0 - 2.0)), 0, 0])


def test_two_columns() -> None:
    values = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    own, other = told(TOLD[:2]), told([(0, 0, "b", "", BOX), (0, 0, "d", "", BOX)])
    given = Signals(
        {},
        {},
        features={
            "regions:image": Ragged(values[:2], torch.zeros(2, dtype=torch.long)),
            "regions:contrast_image": Ragged(values[2:], torch.zeros(2, dtype=torch.long)),
        },
        sources=("x",),
        regions={"image": own, "contrast_image": other},
    )
    both = RegionContrast(columns=("image", "contrast_image"), negatives="pair")(given, None)
    # "b" finds itself in the contrast image, against "d" there and, from there, "a" here.
    assert both.terms[0].count == 2
    assert both.metrics["negatives"].tolist() == [1, 1]
    assert RegionContrast(negatives="pair")(given, None).terms[0].count == 0


def test_nothing_to_contrast_is_zero_with_the_parameter_in_the_graph() -> None:
    objective = RegionContrast()
    nothing = objective(Signals({}, {}, sources=("x",)), None)
    assert nothing.terms[0].count == 0
    nothing.loss.backward()
    assert objective.log_scale.grad is not None
    alone = objective(signals(torch.randn(1, 4), told(TOLD[:1])), None)
    assert (alone.loss.item(), alone.terms[0].count.item()) == (0, 0)


def test_the_temperature_stays_in_its_bounds() -> None:
    objective = RegionContrast(temperature=0.01)
    with torch.no_grad():
        objective.log_scale += 5
    objective(signals(torch.randn(len(TOLD), 4), told()), None)
    assert objective.log_scale.exp().item() == pytest.approx(100)
    assert not RegionContrast(learn_temperature=False).log_scale.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": "all"}, "negatives must be one of pair, row, batch, got 'all'"),
        ({"columns": ("images",)}, r"columns must be among image, contrast_image, got \('images',\)"),
        ({"columns": ()}, "columns must be among"),
        ({"temperature": 0.001}, "temperature must be at least 0.01"),
        ({"overlap": 0}, "overlap must be a number above 0"),
        ({"normalise": 1}, "normalise must be true or false"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionContrast(**options)


def test_rows_keep_their_regions_when_selected() -> None:
    values = torch.randn(len(TOLD), 4, generator=torch.Generator().manual_seed(1))
    objective = RegionContrast(negatives="row")
    whole = objective(signals(values, told()), None)
    one = objective(dataclasses.replace(signals(values, told())).select([1]), None)
    assert one.terms[0].count == 2
    assert whole.terms[0].count > 2
