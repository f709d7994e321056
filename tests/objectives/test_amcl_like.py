"""Several heads, temperatures of every pair: against loops in float64, what keeps temperatures finite, gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mllm_align.contract import Ragged, Signals
from mllm_align.objectives import AmclLike
from mllm_align.objectives.amcl_like import spread_penalty

HEADS, DIM, WIDTH = 2, 3, 4


def ready(**options: Any) -> AmclLike:
    torch.manual_seed(1)
    objective = AmclLike(heads=HEADS, dim=DIM, **options)
    objective.set_widths({feature.name: WIDTH for feature in objective.needs.features})
    with torch.no_grad():
        objective.bilinear.normal_(std=0.5)
        objective.offset.normal_(std=0.5)
    return objective.double()


def signals(objective: AmclLike, values: list[torch.Tensor], rows: Any, size: int) -> Signals:
    features = {
        feature.name: Ragged(value, torch.tensor(of))
        for feature, value, of in zip(objective.needs.features, values, rows, strict=True)
    }
    return Signals({}, {}, features=features, sources=("a",) * size)


def drawn(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2)]


def test_the_terms_are_those_of_loops() -> None:
    objective = ready(temperature=0.3, spread_weight=0.5)
    images, texts = drawn(3)
    outcome = objective(signals(objective, [images, texts], ([3, 0, 2], [0, 2, 3]), 4), None)
    pairs = list(zip([images[1], images[2], images[0]], texts, strict=True))
    contrast = spread = 0.0
    temperatures = []
    for head in range(HEADS):
        own = slice(head * DIM, (head + 1) * DIM)
        sides = [
            [objective.pairs.heads[side].projection.weight.detach()[own] @ vector for vector in vectors]
            for side, vectors in zip(("image", "text"), zip(*pairs, strict=True), strict=True)
        ]
        units = [[vector / vector.norm() for vector in side] for side in sides]
        table = [
            [float((image @ objective.bilinear[head] @ text + objective.offset[head]).detach()) for text in units[1]]
            for image in units[0]
        ]
        temperature = [[0.3 * math.exp(entry) for entry in line] for line in table]
        scaled = [[float(units[0][i] @ units[1][j]) / temperature[i][j] for j in range(3)] for i in range(3)]
        for i in range(3):
            row = sum(math.exp(scaled[i][j]) for j in range(3))
            column = sum(math.exp(scaled[j][i]) for j in range(3))
            contrast += (math.log(row) + math.log(column)) / 2 - scaled[i][i]
            spread += sum(math.log(t / 0.3) + 0.3 / t - 1 for t in temperature[i]) / 3
        temperatures.append([temperature[i][i] for i in range(3)])
    first, second = outcome.terms
    assert (first.name, first.weight, int(first.count)) == ("contrast", 1.0, 3)
    assert (second.name, second.weight, int(second.count)) == ("spread", 0.5, 3)
    assert first.sum.item() == pytest.approx(contrast, rel=1e-9)
    assert second.sum.item() == pytest.approx(spread, rel=1e-9)
    torch.testing.assert_close(outcome.metrics["temperature"], torch.tensor(temperatures).double().T)


def test_one_head_left_alone_is_info_nce() -> None:
    """Constant similarities too: log N of each head."""
    objective = AmclLike(heads=1, dim=WIDTH, temperature=0.5)
    objective.set_widths({feature.name: WIDTH for feature in objective.needs.features})
    images, texts = (value.float() for value in drawn(4))
    cosines = [
        torch.nn.functional.normalize(objective.pairs.heads[side](value), dim=1)
        for side, value in (("image", images), ("text", texts))
    ]
    logits = 2 * cosines[0] @ cosines[1].T
    own = torch.arange(4)
    cross = torch.nn.functional.cross_entropy
    expected = 0.5 * (cross(logits, own) + cross(logits.T, own))
    outcome = objective(signals(objective, [images, texts], [range(4)] * 2, 4), None)
    torch.testing.assert_close(outcome.loss, expected)
    many = ready(temperature=0.5)
    with torch.no_grad():
        many.bilinear.zero_()
    same = [torch.ones(5, WIDTH, dtype=torch.float64)] * 2
    outcome = many(signals(many, same, [range(5)] * 2, 5), None)
    assert outcome.terms[0].sum.item() / 5 == pytest.approx(HEADS * math.log(5))
    told = {name: found.tolist() for name, found in outcome.metrics.items() if name != "temperature"}
    assert told == {
        "accuracy/image_to_text": [0.0] * 5,
        "accuracy/text_to_image": [0.0] * 5,
        "ties": [8.0] * 5,
    }


def test_accuracies_are_those_of_the_mean_cosine_of_the_heads() -> None:
    objective, size = ready(), 6
    images, texts = drawn(size, seed=7)
    outcome = objective(signals(objective, [images, texts], [range(size)] * 2, size), None)
    table = [[0.0] * size for _ in range(size)]
    for head in range(HEADS):
        own = slice(head * DIM, (head + 1) * DIM)
        of_image, of_text = (objective.pairs.heads[side].projection.weight.detach()[own] for side in ("image", "text"))
        for i, image in enumerate(images):
            for j, text in enumerate(texts):
                one, other = of_image @ image, of_text @ text
                table[i][j] += float(one @ other / one.norm() / other.norm())
    others = [[j for j in range(size) if j != i] for i in range(size)]
    rows = [float(all(table[i][i] > table[i][j] for j in others[i])) for i in range(size)]
    columns = [float(all(table[i][i] > table[j][i] for j in others[i])) for i in range(size)]
    assert 0 < sum(rows) + sum(columns) < 2 * size
    assert outcome.metrics["accuracy/image_to_text"].tolist() == rows
    assert outcome.metrics["accuracy/text_to_image"].tolist() == columns


def test_the_penalty_is_least_where_temperatures_start_and_keeps_them_finite() -> None:
    logs = torch.tensor([math.log(0.07), math.log(0.07) - 9, math.log(0.07) + 9])
    found = spread_penalty(logs, 0.07).tolist()
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert min(found[1:]) > 7
    # Pairs that cannot be told apart, and wrong ones, would have their temperature rise for ever.
    vectors = torch.nn.functional.normalize(torch.randn(4, DIM, generator=torch.Generator().manual_seed(5)), dim=1)
    ends = {}
    for weight in (1e-9, 1.0):
        objective = AmclLike(heads=1, dim=DIM, spread_weight=weight)
        objective.set_widths({feature.name: DIM for feature in objective.needs.features})
        given = signals(objective, [vectors, -vectors], [range(4)] * 2, 4)
        optimizer = torch.optim.Adam([objective.bilinear, objective.offset], lr=0.1)
        for _ in range(200):
            optimizer.zero_grad()
            outcome = objective(given, None)
            outcome.loss.backward()
            optimizer.step()
        ends[weight] = outcome.metrics["temperature"].max().item()
    assert ends[1e-9] > 100
    assert ends[1.0] < 4


def test_a_temperature_below_the_bound_comes_back() -> None:
    objective = ready()
    with torch.no_grad():
        objective.bilinear.zero_()
        objective.offset.fill_(-5.0)
    outcome = objective(signals(objective, drawn(3), [range(3)] * 2, 3), None)
    assert outcome.metrics["temperature"].flatten().tolist() == pytest.approx([0.01] * 6)
    outcome.loss.backward()
    assert objective.offset.grad is not None
    assert (objective.offset.grad < 0).all()


def test_gradients() -> None:
    objective = ready(temperature=0.3)
    values = [value.requires_grad_() for value in drawn(3)]
    assert torch.autograd.gradcheck(
        lambda *given: objective(signals(objective, list(given), [range(3)] * 2, 3), None).loss, values
    )
    objective(signals(objective, values, [range(3)] * 2, 3), None).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in objective.parameters())


def test_batches_without_a_pair() -> None:
    objective = ready()
    for given in (Signals({}, {}, sources=("a",)), signals(objective, drawn(1), ([0], [1]), 2)):
        outcome = objective(given, None)
        assert [(term.name, int(term.count), term.sum.item()) for term in outcome.terms] == [
            ("contrast", 0, 0.0),
            ("spread", 0, 0.0),
        ]
        outcome.loss.backward()


def test_what_stays_is_all_heads_one_behind_the_other() -> None:
    objective = ready()
    assert {side: head.options["dim"] for side, head in objective.embedding.heads.items()} == {
        "image": HEADS * DIM,
        "text": HEADS * DIM,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0}, "AmclLike: heads must be a whole number above 0, got 0"),
        ({"dim": 2.5}, "AmclLike: dim must be a whole number above 0, got 2.5"),
        ({"temperature": 0.001}, "AmclLike: temperature must be at least 0.01, got 0.001"),
        ({"spread_weight": 0}, "AmclLike: spread_weight must be a number above 0, got 0"),
        ({"dimensions": (3,)}, "AmclLike has no option 'dimensions'"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AmclLike(**options)
