"""FDT against loops in float64: sparsemax by bisection, the codebook's weights, the loss; rows without a partner."""

from __future__ import annotations

import math

import pytest
import torch

from mllm_align.contract import Ragged, Signals
from mllm_align.objectives import FDT
from mllm_align.objectives.fdt import sparsemax


def by_bisection(scores: list[float]) -> list[float]:
    low, high = min(scores) - 1.0, max(scores)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(max(0.0, s - middle) for s in scores) > 1 else (low, middle)
    return [max(0.0, s - high) for s in scores]


@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
def test_sparsemax_is_the_nearest_point_of_the_simplex(scale: float) -> None:
    scores = scale * torch.randn(4, 9, dtype=torch.float64)
    weights = sparsemax(scores)
    for line, own in zip(scores.tolist(), weights.tolist(), strict=True):
        assert own == pytest.approx(by_bisection(line), abs=1e-9)
        assert sum(own) == pytest.approx(1)
    scores.requires_grad_()
    assert torch.autograd.gradcheck(sparsemax, (scores,))


def made() -> FDT:
    torch.manual_seed(2)
    objective = FDT(codes=12, dim=6, temperature=0.5)
    objective.set_widths({feature.name: 5 for feature in objective.needs.features})
    return objective.double()


def signals(images: torch.Tensor, of_image: list[int], texts: torch.Tensor, of_text: list[int]) -> Signals:
    first, second = FDT(codes=1, dim=1).needs.features
    features = {first.name: Ragged(images, torch.tensor(of_image)), second.name: Ragged(texts, torch.tensor(of_text))}
    return Signals({}, {}, features=features, sources=("x",) * 4)


def test_the_loss_is_that_of_loops() -> None:
    objective = made()
    images = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    texts = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    of_image, of_text = [0, 0, 0, 1, 2, 2, 3], [0, 1, 1, 1, 3, 3]  # row 2 has no text
    outcome = objective(signals(images, of_image, texts, of_text), None)
    vectors = []
    for side, values, places in (("images", images, of_image), ("texts", texts, of_text)):
        vectors.append([])
        for row in (0, 1, 3):
            own = [objective.heads[side](values[n]) for n, place in enumerate(places) if place == row]
            scores = [max(float(q @ code) / math.sqrt(6) for q in own) for code in objective.codes]
            total = sum(w * code for w, code in zip(by_bisection(scores), objective.codes.detach(), strict=True))
            vectors[-1].append(total / math.sqrt(float(total @ total)))
    expected = 0.0
    for k in range(3):
        for own, other in (vectors, vectors[::-1]):
            line = [2 * float(own[k] @ key) for key in other]
            expected += 0.5 * (math.log(sum(map(math.exp, line))) - line[k])
    (term,) = outcome.terms
    assert term.count == 3
    assert term.sum.item() == pytest.approx(expected, rel=1e-6)
    assert outcome.metrics["codes/image"].shape == (3,)
    term.sum.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())
    assert images.grad is not None
    assert torch.equal(images.grad[[4, 5]], torch.zeros(2, 5, dtype=torch.float64))


def test_without_rows_the_heads_are_still_in_the_graph() -> None:
    objective = made()
    (term,) = objective(Signals({}, {}, sources=("x",)), None).terms
    assert (term.sum.item(), term.count.item()) == (0, 0)
    term.sum.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_heads_that_are_not_made() -> None:
    with pytest.raises(ValueError, match="set_widths"):
        FDT()(Signals({}, {}, sources=("x",)), None)
