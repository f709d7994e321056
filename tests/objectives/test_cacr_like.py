"""Attraction and repulsion against loops in float64, worked numbers, and gradients with and without their weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from mllm_align.contract import Ragged, Signals
from mllm_align.objectives import CacrLike
from mllm_align.objectives.cacr_like import weighted_cost

WIDTH = 4
# Of four rows the third has no image; whose the paraphrases are, in order of row.
IMAGES, TEXTS, PARAPHRASES = (0, 1, 3), (0, 1, 2, 3), (0, 0, 2, 3)
SIZE = 4


def drawn() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(len(rows), WIDTH, generator=generator, dtype=torch.float64)
        for rows in (IMAGES, TEXTS, PARAPHRASES)
    ]


def signals(objective: CacrLike, values: list[torch.Tensor], rows: Any = (IMAGES, TEXTS, PARAPHRASES)) -> Signals:
    names = [feature.name for feature in objective.needs.features]
    features = {
        name: Ragged(value, torch.tensor(of, dtype=torch.long))
        for name, value, of in zip(names, values, rows, strict=True)
    }
    return Signals({}, {}, features=features, sources=("a",) * SIZE)


def slow(costs: list[float], sharpness: float) -> float:
    """The mean of some costs under their softmax."""
    weights = [math.exp(sharpness * cost) for cost in costs]
    return sum(weight * cost for weight, cost in zip(weights, costs, strict=True)) / sum(weights)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = one / one.norm(), other / other.norm()
    return sum((a - b) ** 2 for a, b in zip(one.tolist(), other.tolist(), strict=True))


def loops(values: list[torch.Tensor], t_plus: float, t_minus: float) -> tuple[float, float]:
    images = dict(zip(IMAGES, values[0], strict=True))
    said = [*zip(TEXTS, values[1], strict=True), *zip(PARAPHRASES, values[2], strict=True)]
    said = [(row, text) for row, text in said if row in images]
    attract = repel = 0.0
    for row, image in images.items():
        attract += slow([distance(image, text) for of, text in said if of == row], t_plus) / 2
        repel -= slow([distance(image, text) for of, text in said if of != row], -t_minus) / 2
        own = [text for of, text in said if of == row]
        for text in own:
            attract += distance(image, text) / len(own) / 2
            others = [distance(other, text) for of, other in images.items() if of != row]
            repel -= slow(others, -t_minus) / len(own) / 2
    return attract, repel


def test_worked_numbers() -> None:
    costs, every = torch.tensor([[0.5, 1.0, 2.0]], dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    assert weighted_cost(costs, every, 1.0).item() == pytest.approx(1.5584095, abs=1e-7)
    assert -weighted_cost(costs, every, 0.0).item() == pytest.approx(-1.1666667, abs=1e-7)
    assert -weighted_cost(costs, every, -2.0).item() == pytest.approx(-0.6824268, abs=1e-7)
    alone = torch.tensor([[False, True, False]])
    assert weighted_cost(costs, alone, 5.0).item() == 1.0
    assert weighted_cost(costs, ~every, 1.0).item() == 0.0


@pytest.mark.parametrize("detach", [False, True])
def test_the_terms_are_those_of_loops(detach: bool) -> None:
    objective, values = CacrLike(0.7, 3.0, 0.5, 2.0, detach_weights=detach), drawn()
    attract, repel = objective(signals(objective, values), None).terms
    expected = loops(values, 0.7, 3.0)
    assert (attract.name, attract.weight, int(attract.count)) == ("attract", 0.5, 3)
    assert (repel.name, repel.weight, int(repel.count)) == ("repel", 2.0, 3)
    assert attract.sum.item() == pytest.approx(expected[0], rel=1e-10)
    assert repel.sum.item() == pytest.approx(expected[1], rel=1e-10)


def test_metrics_know_a_paraphrase_for_a_right_answer() -> None:
    objective = CacrLike()
    eye = torch.eye(4)
    rows = ((0, 1), (0, 1), (0,))
    outcome = objective(signals(objective, [eye[:2], eye[2:], eye[:1]], rows), None)
    assert outcome.metrics["accuracy/image_to_text"].tolist() == [1.0, 0.0]
    outcome = objective(signals(objective, [eye[:2], eye[:2].flip(0), eye[2:3]], rows), None)
    assert outcome.metrics["accuracy/text_to_image"].tolist() == [0.0, 0.0]


def test_what_is_as_near_is_not_nearer() -> None:
    objective = CacrLike()
    same, rows = [torch.ones(3, WIDTH), torch.ones(3, WIDTH), torch.ones(2, WIDTH)], (range(3), range(3), (0, 2))
    found = objective(signals(objective, same, rows), None).metrics
    assert found["accuracy/image_to_text"].tolist() == found["accuracy/text_to_image"].tolist() == [0.0] * 3
    # The paraphrase of row 0 says what the text of row 1 does.
    eye = torch.eye(4)
    outcome = objective(signals(objective, [eye[:2].flip(0), eye[:2], eye[1:2]], ((0, 1), (0, 1), (0,))), None)
    assert outcome.metrics["accuracy/image_to_text"].tolist() == [0.0, 0.0]


def test_without_paraphrases_attraction_is_the_cost_itself() -> None:
    objective = CacrLike(t_plus=9.0)
    images, texts, _ = drawn()
    outcome = objective(signals(objective, [images, texts, texts[:0]], (IMAGES, TEXTS, ())), None)
    expected = sum(distance(image, texts[row]) for row, image in zip(IMAGES, images, strict=True))
    assert outcome.terms[0].sum.item() == pytest.approx(expected, rel=1e-10)


def test_gradients_with_weights_and_without() -> None:
    values = [value.requires_grad_() for value in drawn()]
    objective = CacrLike(dim=3)
    objective.set_widths({feature.name: WIDTH for feature in objective.needs.features})
    objective.double()
    assert torch.autograd.gradcheck(lambda *given: objective(signals(objective, list(given)), None).loss, values)
    objective(signals(objective, values), None).loss.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())
    costs = torch.tensor([[0.5, 1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    weighted_cost(costs, torch.ones(1, 3, dtype=torch.bool), 1.0, detach=True).backward()
    weights = [math.exp(cost) / sum(math.exp(other) for other in (0.5, 1.0, 2.0)) for cost in (0.5, 1.0, 2.0)]
    assert costs.grad is not None
    assert costs.grad.flatten().tolist() == pytest.approx(weights)


def test_one_pair_has_nobody_to_be_pushed_from_and_no_pair_has_no_loss() -> None:
    objective = CacrLike()
    values = [torch.randn(1, WIDTH, requires_grad=True) for _ in range(3)]
    attract, repel = objective(signals(objective, values, ((0,),) * 3), None).terms
    assert (int(attract.count), int(repel.count), repel.sum.item()) == (1, 0, 0.0)
    apart = objective(signals(objective, values, ((0,), (1,), (1,))), None)
    assert [int(term.count) for term in apart.terms] == [0, 0]
    apart.loss.backward()
    nothing = objective(Signals({}, {}, sources=("a",)), None)
    assert [(term.name, int(term.count)) for term in nothing.terms] == [("attract", 0), ("repel", 0)]


def test_order_of_rows_does_not_matter() -> None:
    objective = CacrLike()
    given = signals(objective, drawn())
    moved = replace(given, sources=("a",) * SIZE).select([2, 3, 0, 1])
    torch.testing.assert_close(objective(moved, None).loss, objective(given, None).loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t_plus": 0}, "CacrLike: t_plus must be a number above 0, got 0"),
        ({"repel_weight": -1}, "CacrLike: repel_weight must be a number of at least 0, got -1"),
        ({"detach_weights": 1}, "CacrLike: detach_weights must be true or false, got 1"),
        ({"temperature": 1}, "CacrLike has no option 'temperature'"),
        ({"text": "chosen", "text_prompt": None}, "CacrLike: paraphrases are read before an instruction"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CacrLike(**options)
