"""SVLC against loops in float64: further columns for everyone, and a softmax among a region's own texts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from mllm_align.contract import Ragged, Regions, Signals
from mllm_align.objectives import SVLC, RegionText

# Row, text, negatives: one region has none, one no text, one negative is another region's own text.
TOLD: tuple[tuple[int, str, tuple[str, ...]], ...] = (
    (0, "a red cup", ("a blue cup", "a red dog")),
    (0, "", ("a man",)),
    (1, "a blue cup", ("A Red Cup",)),
    (1, "a tree", ()),
)
NEGATIVES = [(n, text) for n, (_, _, own) in enumerate(TOLD) for text in own]
NAMED = [n for n, (_, text, _) in enumerate(TOLD) if text]
WIDTH = 3


def drawn() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    sizes = {"regions": len(TOLD), "region_texts": len(TOLD), "region_negatives": len(NEGATIVES)}
    return {
        f"{name}:image": torch.randn(size, WIDTH, generator=generator, dtype=torch.float64)
        for name, size in sizes.items()
    }


def signals(values: dict[str, torch.Tensor], told: Any = TOLD) -> Signals:
    rows, texts, negatives = zip(*told, strict=True)
    owners = [row for row, _, own in told for _ in own]
    features = {
        name: Ragged(value, torch.tensor(owners if "negatives" in name else rows)) for name, value in values.items()
    }
    none, boxes = ("",) * len(told), tuple((0.2 * n, 0.0, 0.2 * n + 0.1, 0.1) for n in range(len(told)))
    regions = Regions(rows, (0,) * len(told), boxes, none, texts, none, (), negatives)
    return Signals({}, {}, features=features, sources=("x",) * 2, regions={"image": regions})


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(one @ other) / math.sqrt(float(one @ one)) / math.sqrt(float(other @ other))


@pytest.mark.parametrize(("sides", "limit"), [("both", None), ("region_to_text", None), ("both", 0.3)])
def test_the_terms_are_those_of_loops(sides: str, limit: float | None) -> None:
    """With a limit of similarity a region keeps its own negatives, however near; of others those that are not."""
    values = drawn()
    regions, texts, false = values.values()
    false[0] = texts[0] + 0.1 * false[0]  # near to its own region's text
    outcome = SVLC(0.5, 2.0, sides=sides, temperature=0.5, text_similarity=limit, dim=None)(signals(values), None)
    near = limit or 2.0
    towards, back, own, right = [], [], [], []
    for n in NAMED:
        positive = math.exp(2 * cosine(regions[n], texts[n]))
        apart = [m for m in NAMED if m != n and cosine(texts[n], texts[m]) <= near]
        others = [math.exp(2 * cosine(regions[n], texts[m])) for m in apart]
        said = TOLD[n][1].lower()
        further = {
            k: math.exp(2 * cosine(regions[n], false[k]))
            for k, (owner, t) in enumerate(NEGATIVES)
            if t.lower() != said and (owner == n or cosine(texts[n], false[k]) <= near)
        }
        towards.append(-math.log(positive / (positive + sum(others) + sum(further.values()))))
        reverse = [math.exp(2 * cosine(regions[m], texts[n])) for m in apart]
        back.append(-math.log(positive / (positive + sum(reverse))))
        mine = [value for k, value in further.items() if NEGATIVES[k][0] == n]
        if mine:
            own.append(-math.log(positive / (positive + sum(mine))))
            right.append(float(positive > max(mine)))
    plain, among_own = outcome.terms
    expected = sum(towards) if sides == "region_to_text" else (sum(towards) + sum(back)) / 2
    assert (plain.name, plain.weight, int(plain.count)) == ("region_text", 0.5, 3)
    assert plain.sum.item() == pytest.approx(expected, abs=1e-6)
    assert (among_own.name, among_own.weight, int(among_own.count)) == ("own_negatives", 2.0, 2)
    assert among_own.sum.item() == pytest.approx(sum(own), abs=1e-6)
    assert outcome.metrics["own_accuracy"].tolist() == right
    assert (outcome.metrics["negatives"].sum() < 6) == (limit is not None)


def test_without_negatives_it_is_region_text() -> None:
    values = {name: value for name, value in drawn().items() if "negatives" not in name}
    told = [(row, text, ()) for row, text, _ in TOLD]
    plain, among_own = SVLC(dim=None)(signals(values, told), None).terms
    (expected,) = RegionText(dim=None)(signals(values, told), None).terms
    torch.testing.assert_close(plain.sum, expected.sum)
    assert (among_own.sum.item(), among_own.count.item()) == (0, 0)
    nothing = SVLC(dim=None)(Signals({}, {}, sources=("x",)), None)
    assert [int(term.count) for term in nothing.terms] == [0, 0]
    nothing.loss.backward()


@pytest.mark.parametrize("limit", [None, 0.3])
def test_paraphrases_are_found_by_regions_and_by_their_texts(limit: float | None) -> None:
    said = {0: ("a cup in red", "the cup"), 2: ("THE CUP", "a cup in blue"), 3: ("it grows",)}
    entries = [(n, text.lower()) for n, own in said.items() for text in own]
    generator = torch.Generator().manual_seed(9)
    values = drawn()
    same = torch.randn(len(entries), WIDTH, generator=generator, dtype=torch.float64)
    given = signals(values)
    told = dataclasses.replace(given.regions["image"], positives=tuple(said.get(n, ()) for n in range(len(TOLD))))
    owners = torch.tensor([TOLD[n][0] for n, _ in entries])
    features = {**given.features, "region_positives:image": Ragged(same, owners)}
    objective = SVLC(paraphrase_weight=0.5, temperature=0.5, text_similarity=limit, dim=None)
    assert objective.needs.features[-1].pooling == "positives"
    outcome = objective(dataclasses.replace(given, features=features, regions={"image": told}), None)
    total, near, texts = 0.0, limit or 2.0, values["region_texts:image"]
    for n in NAMED:
        own = [TOLD[n][1].lower(), *(text for m, text in entries if m == n)]
        negatives = [
            k
            for k, (m, text) in enumerate(entries)
            if m != n and text not in own and cosine(texts[n], texts[m]) <= near and cosine(texts[n], same[k]) <= near
        ]
        for side in (values["regions:image"][n], values["region_texts:image"][n]):
            others = sum(math.exp(2 * cosine(side, same[k])) for k in negatives)
            mine = [math.exp(2 * cosine(side, same[k])) for k, (m, _) in enumerate(entries) if m == n]
            total += sum(-math.log(each / (each + others)) for each in mine) / len(mine) / 2
    term = outcome.terms[-1]
    assert (term.name, term.weight, int(term.count)) == ("paraphrases", 0.5, 3)
    assert term.sum.item() == pytest.approx(total, abs=1e-6)
    plain = SVLC(temperature=0.5, text_similarity=limit, dim=None)(given, None)
    for one, other in zip(outcome.terms[:2], plain.terms, strict=True):
        torch.testing.assert_close(one.sum, other.sum)
    nothing = objective(Signals({}, {}, sources=("x",)), None)
    assert [int(each.count) for each in nothing.terms] == [0, 0, 0]
    nothing.loss.backward()


def test_rows_that_list_nothing_beside_rows_that_do() -> None:
    """As a part of a sum sees its own rows of a batch: the features are there, without entries."""
    given = signals({**drawn(), "region_positives:image": torch.ones(1, WIDTH, dtype=torch.float64)})
    told = dataclasses.replace(given.regions["image"], positives=(("a cup in red",), (), (), ()), negatives=())
    features = {**given.features, "region_negatives:image": Ragged(torch.ones(1, WIDTH), torch.tensor([0]))}
    features["region_positives:image"] = features["region_positives:image"]._replace(row=torch.tensor([0]))
    told = dataclasses.replace(told, negatives=(("a blue cup",), (), (), ()))
    both = dataclasses.replace(given, features=features, regions={"image": told})
    bare = both.select([1])
    assert bare.features["region_negatives:image"].values.shape == (0, WIDTH)
    objective = SVLC(paraphrase_weight=1.0, dim=None)
    outcome = objective(bare, None)
    assert {term.name: int(term.count) for term in outcome.terms} == {
        "region_text": 2,
        "own_negatives": 0,
        "paraphrases": 0,
    }
    assert outcome.terms[0].sum == RegionText(dim=None)(bare, None).terms[0].sum
    outcome.loss.backward()


def test_a_lone_region_is_told_from_its_negatives() -> None:
    values = {name: value[:1] for name, value in drawn().items()}
    outcome = SVLC(dim=None)(signals(values, [(0, "a red cup", ("a blue cup",))]), None)
    assert [int(term.count) for term in outcome.terms] == [1, 1]
    assert outcome.terms[1].sum.item() > 0


def test_gradients_and_heads() -> None:
    torch.manual_seed(0)
    objective, values = SVLC(dim=2, temperature=0.5), drawn()
    objective.set_widths({feature.name: WIDTH for feature in objective.needs.features})
    objective.double()
    leaves = [value.requires_grad_(True) for value in values.values()]
    assert torch.autograd.gradcheck(
        lambda *given: objective(signals(dict(zip(values, given, strict=True))), None).loss, leaves
    )
    objective(signals(values), None).loss.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "sigmoid"}, "leave loss and sides as they are"),
        ({"sides": "text_to_region"}, "leave loss and sides as they are"),
        ({"contrast_weight": 0, "negative_weight": 0}, "nothing is left to train"),
        ({"temperature": 0.001}, "RegionText: temperature must be at least 0.01"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SVLC(**options)
