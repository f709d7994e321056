"""FILIP against loops over single tokens in float64."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from mllm_align.contract import Ragged, Regions, Signals
from mllm_align.objectives import FILIP, Weighted
from mllm_align.objectives.filip import late_interaction

# Rows of each token: row 2 has no text, row 4 no image; counts are ragged.
IMAGE_ROWS, TEXT_ROWS = [0, 0, 0, 1, 2, 2, 3, 3, 3, 3], [0, 0, 1, 1, 1, 1, 3, 4, 4]


def drawn(width: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(len(rows), width, generator=generator, dtype=torch.float64) for rows in (IMAGE_ROWS, TEXT_ROWS)
    )  # type: ignore[return-value]


def signals(images: torch.Tensor, texts: torch.Tensor) -> Signals:
    features = {
        "image_tokens:image": Ragged(images, torch.tensor(IMAGE_ROWS)),
        "text_tokens:chosen": Ragged(texts, torch.tensor(TEXT_ROWS)),
    }
    return Signals({}, {}, features=features, sources=("x",) * 5)


def tokens_of(values: torch.Tensor, rows: list[int], row: int) -> list[list[float]]:
    own = [value.tolist() for value, place in zip(values, rows, strict=True) if place == row]
    return [[x / math.sqrt(sum(y * y for y in token)) for x in token] for token in own]


def by_loop(images: torch.Tensor, texts: torch.Tensor) -> tuple[list[list[float]], list[list[float]]]:
    """Similarities over image tokens, and over text tokens, of the rows 0, 1 and 3; rows are images."""
    of_images, of_texts = [], []
    for a in (0, 1, 3):
        of_images.append([])
        of_texts.append([])
        for b in (0, 1, 3):
            u, w = tokens_of(images, IMAGE_ROWS, a), tokens_of(texts, TEXT_ROWS, b)
            products = [[sum(x * y for x, y in zip(i, j, strict=True)) for j in w] for i in u]
            of_images[-1].append(sum(max(line) for line in products) / len(u))
            of_texts[-1].append(sum(max(line[j] for line in products) for j in range(len(w))) / len(w))
    return of_images, of_texts


def test_the_loss_is_that_of_a_loop() -> None:
    images, texts = drawn()
    outcome = FILIP(temperature=0.5, dim=None)(signals(images, texts), None)
    of_images, of_texts = by_loop(images, texts)
    total = 0.0
    for n in range(3):
        total -= math.log(math.exp(2 * of_images[n][n]) / sum(math.exp(2 * s) for s in of_images[n])) / 2
        total -= math.log(math.exp(2 * of_texts[n][n]) / sum(math.exp(2 * line[n]) for line in of_texts)) / 2
    (term,) = outcome.terms
    assert term.count == 3
    assert term.sum.item() == pytest.approx(total, abs=1e-6)
    right = [float(max(of_images[n]) == of_images[n][n]) for n in range(3)]
    assert outcome.metrics["accuracy/image_to_text"].tolist() == right
    right = [float(max(line[n] for line in of_texts) == of_texts[n][n]) for n in range(3)]
    assert outcome.metrics["accuracy/text_to_image"].tolist() == right
    assert outcome.metrics["temperature"].item() == pytest.approx(0.5)


@pytest.mark.parametrize("at_once", [1, 60, 10**6])
def test_parts_and_padding_change_nothing(at_once: int) -> None:
    """Also where padding would match better than any word does."""
    generator = torch.Generator().manual_seed(4)
    images, texts = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3, 4, 2), (5, 3, 2)))
    image_there = torch.tensor([[True] * 4, [True, False, False, False], [True, True, False, False]])
    text_there = torch.tensor(
        [[True] * 3, [True, False, False], [True, True, False], [True] * 3, [True, False, False]]
    )
    padded = images.masked_fill(~image_there[..., None], 50.0).requires_grad_(True)
    found = late_interaction(padded, image_there, texts.masked_fill(~text_there[..., None], 50.0), text_there, at_once)
    for a in range(3):
        for b in range(5):
            products = images[a][image_there[a]] @ texts[b][text_there[b]].T
            torch.testing.assert_close(found[0][a, b], products.max(dim=1).values.mean())
            torch.testing.assert_close(found[1][a, b], products.max(dim=0).values.mean())
    (gradient,) = torch.autograd.grad(found[0].sum() + found[1].square().sum(), padded)
    whole = late_interaction(padded, image_there, texts, text_there)
    (expected,) = torch.autograd.grad(whole[0].sum() + whole[1].square().sum(), padded)
    torch.testing.assert_close(gradient, expected)
    assert not gradient[~image_there].any()


def test_gradients() -> None:
    images, texts = (values.requires_grad_(True) for values in drawn())
    objective = FILIP(dim=2, temperature=0.5)
    objective.set_widths({"image_tokens:image": 3, "text_tokens:chosen": 3})
    objective.double()
    assert torch.autograd.gradcheck(lambda i, t: objective(signals(i, t), None).terms[0].sum, (images, texts))


def test_heads_come_before_the_norm() -> None:
    images, texts = drawn()
    objective = FILIP(dim=2)
    objective.set_widths({"image_tokens:image": 3, "text_tokens:chosen": 3})
    heads = objective.projection.heads
    with torch.no_grad():
        moved = [values @ heads[side].weight.double().T for side, values in (("images", images), ("texts", texts))]
        torch.testing.assert_close(
            objective(signals(images, texts), None).loss, FILIP(dim=None)(signals(*moved), None).loss
        )
    objective(signals(images, texts), None).loss.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_nothing_to_compare_is_zero_with_the_parameters_in_the_graph() -> None:
    objective = FILIP(dim=2)
    objective.set_widths({"image_tokens:image": 3, "text_tokens:chosen": 3})
    apart = signals(*drawn()).select([2, 4])
    for given in (Signals({}, {}, sources=("x",)), apart):
        objective.zero_grad()
        outcome = objective(given, None)
        assert outcome.terms[0].count == 0
        outcome.loss.backward()
        assert all(parameter.grad is not None for parameter in objective.parameters())


def test_the_temperature_stays_in_its_bounds() -> None:
    objective = FILIP(dim=None)
    with torch.no_grad():
        objective.log_scale += 5
    objective(signals(*drawn()), None)
    assert objective.log_scale.exp().item() == pytest.approx(100)


# Row, text, box, tokens that it covers, states of its text: one has no text, one lies within another, two are of one
# name, and one is alone with a row.
BOXES = ((0.0, 0.0, 0.5, 0.5), (0.1, 0.1, 0.3, 0.3), (0.5, 0.5, 0.9, 0.9), (0.6, 0.0, 0.9, 0.4), (0.0, 0.0, 1.0, 1.0))
TOLD = ((0, "a red cup", 3, 2), (0, "its handle", 1, 1), (0, "", 2, 0), (1, "A Red Cup", 2, 2), (2, "two dogs", 4, 3))


def regions_of(tokens: torch.Tensor, words: torch.Tensor, told: Any = TOLD) -> Signals:
    rows, texts, covered, said = zip(*told, strict=True)
    of_row = [[row for row, count in zip(rows, own, strict=True) for _ in range(count)] for own in (covered, said)]
    none = ("",) * len(told)
    where = rows, (0,) * len(told), BOXES[: len(told)]
    regions = Regions(*where, none, texts, none, num_tokens=covered, num_words=said)
    features = {
        "region_tokens:image": Ragged(tokens, torch.tensor(of_row[0])),
        "region_words:image": Ragged(words, torch.tensor(of_row[1])),
    }
    return Signals({}, {}, features=features, sources=("x",) * 3, regions={"image": regions})


def of_regions() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    counts = (sum(own[number] for own in TOLD) for number in (2, 3))
    return tuple(torch.randn(count, 3, generator=generator, dtype=torch.float64) for count in counts)  # type: ignore[return-value]


def units(values: torch.Tensor, number: int) -> list[list[list[float]]]:
    counts = [own[number] for own in TOLD]
    ends = [sum(counts[:n]) for n in range(len(counts) + 1)]
    return [
        [[x / float(token.norm()) for x in token.tolist()] for token in values[ends[n] : ends[n + 1]]]
        for n in range(len(counts))
    ]


@pytest.mark.parametrize("overlap", [0.5, 1.0])
def test_regions_are_compared_by_what_they_cover_and_what_they_are_called(overlap: float) -> None:
    tokens, words = of_regions()
    objective = FILIP(temperature=0.5, dim=None, regions=True, overlap=overlap)
    outcome = objective(regions_of(tokens, words), None)
    seen, said = units(tokens, 2), units(words, 3)
    named = [0, 1, 3, 4]
    apart = {0: [1, 4], 1: [0, 3, 4], 3: [1, 4], 4: [0, 1, 3]}
    if overlap < 1:
        apart[0].remove(1)
        apart[1].remove(0)
    mean: dict[tuple[int, int], tuple[float, float]] = {}
    for n in named:
        for m in named:
            products = [[sum(x * y for x, y in zip(i, j, strict=True)) for j in said[m]] for i in seen[n]]
            columns = list(zip(*products, strict=True))
            mean[n, m] = (
                sum(max(line) for line in products) / len(products),
                sum(max(column) for column in columns) / len(columns),
            )
    total = 0.0
    for n in named:
        among = [math.exp(2 * mean[n, m][0]) for m in [n, *apart[n]]]
        back = [math.exp(2 * mean[m, n][1]) for m in [n, *apart[n]]]
        total -= math.log(among[0] / sum(among)) / 2 + math.log(back[0] / sum(back)) / 2
    (term,) = outcome.terms
    assert term.count == 4
    assert term.sum.item() == pytest.approx(total, abs=1e-6)
    right = [float(mean[n, n][0] > max(mean[n, m][0] for m in apart[n])) for n in named]
    assert outcome.metrics["accuracy/image_to_text"].tolist() == right


def test_regions_of_rows_of_one_source_in_a_sum() -> None:
    given = dataclasses.replace(regions_of(*of_regions()), sources=("x", "x", "y"))
    objective = FILIP(temperature=0.5, dim=None, regions=True)
    (own,) = objective(given.select([0, 1]), None).terms
    (found,) = Weighted((objective, 1.0, "x"))(given, None).terms
    assert own.count == found.count == 2  # of the red cup in row 0 the others are not told apart
    torch.testing.assert_close(found.sum, own.sum)


def test_gradients_of_regions_and_nothing_to_compare() -> None:
    objective = FILIP(dim=2, temperature=0.5, regions=True)
    objective.set_widths({feature.name: 3 for feature in objective.needs.features})
    objective.double()
    tokens, words = (values.requires_grad_(True) for values in of_regions())
    assert torch.autograd.gradcheck(lambda t, w: objective(regions_of(t, w), None).loss, (tokens, words))
    lone = regions_of(*of_regions()).select([2])
    without = regions_of(tokens[:2], words[:0], [(0, "", 2, 0)])
    for given, count in ((lone, 0), (without, 0), (Signals({}, {}, sources=("x",)), 0)):
        objective.zero_grad()
        outcome = objective(given, None)
        assert outcome.terms[0].count == count
        outcome.loss.backward()
        assert all(parameter.grad is not None for parameter in objective.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "chosen"}, "image must be 'image' or 'contrast_image', got 'chosen'"),
        ({"text": "image"}, "text must be 'chosen' or 'rejected'"),
        ({"temperature": 0.001}, "temperature must be at least 0.01"),
        ({"dim": -1}, "dim must be a whole number above 0"),
        ({"regions": 1}, "regions must be true or false"),
        ({"regions": True, "text": "rejected"}, "its texts are those of objects: leave text out"),
        ({"overlap": 0.3}, "overlap and same_class say which regions are told apart: set regions, too"),
        ({"same_class": False}, "overlap and same_class say which regions are told apart: set regions, too"),
        ({"learn_temperature": 1}, "learn_temperature must be true or false"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FILIP(**options)
