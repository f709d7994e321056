"""DocoLike against loops in float64: who is compared with whom, and the loss over them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from mllm_align.contract import Ragged, Regions, Signals, Teacher
from mllm_align.objectives import DocoLike

BOX = (0.1, 0.1, 0.4, 0.2)
# Row, image, text, box, tokens covered.
TOLD: tuple[tuple[Any, ...], ...] = (
    (0, 0, "Total", BOX, 2.0),
    (0, 0, "12", (0.5, 0.1, 0.9, 0.2), 0.5),
    (0, 0, "total", (0.1, 0.5, 0.4, 0.6), 3.0),
    (0, 0, "speck", (0.8, 0.8, 0.81, 0.81), 0.49),
    (0, 1, "alone on its page", BOX, 1.0),
    (1, 0, "Date", BOX, 1.0),
    (1, 0, "", (0.0, 0.5, 1.0, 1.0), 9.0),
    (1, 0, "", (0.0, 0.0, 1.0, 0.4), 9.0),
    (3, 0, "Total", BOX, 2.0),
    (3, 0, "12", (0.5, 0.1, 0.9, 0.2), 0.5),
    (3, 0, "total", (0.1, 0.5, 0.4, 0.6), 3.0),
    (4, 0, "a", BOX, 0.1),
)
WIDTHS = (5, 7)


def told(entries: Any = TOLD) -> Regions:
    row, image, texts, boxes, coverage = zip(*entries, strict=True)
    nothing = ("",) * len(entries)
    return Regions(row, image, boxes, nothing, texts, nothing, coverage)


def objective(**options: Any) -> DocoLike:
    torch.manual_seed(3)
    made = DocoLike(**{"dim": 4, **options})
    made.set_widths(dict(zip((made.seen.name, made.read.name), WIDTHS, strict=True)))
    return made.double()


def signals(made: DocoLike, regions: Regions, seed: int = 0) -> Signals:
    generator = torch.Generator().manual_seed(seed)
    row = torch.tensor(regions.row, dtype=torch.long)
    features = {
        name: Ragged(torch.randn(len(regions), width, generator=generator, dtype=torch.float64), row)
        for name, width in zip((made.seen.name, made.read.name), WIDTHS, strict=True)
    }
    return Signals({}, {}, features=features, sources=("x",) * 5, regions={"image": regions})


def by_loop(made: DocoLike, policy: Signals) -> dict[str, tuple[float, int]]:
    """Sum and count of each term."""
    scale = float(made.log_scale.detach().exp())
    sides = []
    for name, side in ((made.seen.name, "seen"), (made.read.name, "read")):
        weight = made.heads.heads[side].weight.detach()
        sides.append(
            [
                [sum(w * v for w, v in zip(line, value, strict=True)) for line in weight.tolist()]
                for value in policy.features[name].values.tolist()
            ]
        )
    large = [n for n, entry in enumerate(TOLD) if entry[4] >= 0.5]
    limit = made.text_similarity or 2.0

    def cosine(one: list[float], two: list[float]) -> float:
        return sum(a * b for a, b in zip(one, two, strict=True)) / math.sqrt(
            sum(a * a for a in one) * sum(b * b for b in two)
        )

    def loss(own: int, others: list[int], seen: Any, read: Any) -> float:
        total = 0.0
        for left, right in ((seen, read), (read, seen)):
            logits = [scale * cosine(left[own], right[other]) for other in (own, *others)]
            total += math.log(sum(map(math.exp, logits))) - logits[0]
        return total / 2

    intra = []
    for n in large:
        others = [
            m
            for m in large
            if m != n and TOLD[m][:2] == TOLD[n][:2] and (not TOLD[n][2] or TOLD[m][2].lower() != TOLD[n][2].lower())
        ]
        if others:
            left = [m for m in others if cosine(sides[1][n], sides[1][m]) <= limit]
            intra.append(loss(n, left, *sides))
    pages = list(dict.fromkeys(TOLD[n][:2] for n in large))
    means = [
        [
            [
                sum(side[n][d] for n in large if TOLD[n][:2] == page) / sum(TOLD[n][:2] == page for n in large)
                for d in range(4)
            ]
            for page in pages
        ]
        for side in sides
    ]
    content = [tuple((TOLD[n][2], TOLD[n][3]) for n in large if TOLD[n][:2] == page) for page in pages]
    inter = []
    for n in range(len(pages)):
        others = [m for m in range(len(pages)) if m != n and content[m] != content[n]]
        if others:
            inter.append(loss(n, others, *means))
    return {"intra": (sum(intra), len(intra)), "inter": (sum(inter), len(inter))}


def test_both_terms_are_those_of_loops() -> None:
    made = objective()
    policy = signals(made, told())
    outcome = made(policy, None)
    wanted = by_loop(made, policy)
    # Page (0, 0): three objects, of which two say the same; (0, 1) has one; (1, 0) three; (3, 0) as (0, 0).
    assert (wanted["intra"][1], wanted["inter"][1]) == (9, 4)
    for term in outcome.terms:
        assert (term.sum.item(), term.count.item()) == pytest.approx(wanted[term.name], rel=1e-10)
        assert term.weight == 1
    assert outcome.metrics["too_small"].sum() == 2
    assert len(outcome.metrics["too_small"]) == len(TOLD)
    assert len(outcome.metrics["accuracy/intra"]) == 9
    assert outcome.metrics["temperature"].item() == pytest.approx(0.07)


def test_objects_that_the_document_model_takes_for_nearly_one_are_not_told_apart() -> None:
    """Of the page of a date one object is near another one; all that remains of the last page is near each other."""
    made = objective(text_similarity=0.9)
    policy = signals(made, told())
    read = policy.features[made.read.name].values
    read[7] = read[6] + 0.1 * read[7]
    read[8:11] = read[8] + 0.1 * read[8:11]
    outcome = made(policy, None)
    wanted = by_loop(made, policy)
    plain = by_loop(objective(), policy)
    assert wanted["intra"][0] < plain["intra"][0]
    for term in outcome.terms:
        assert (term.sum.item(), term.count.item()) == pytest.approx(wanted[term.name], rel=1e-10)
    assert outcome.terms[0].count == plain["intra"][1] == 9
    assert len(outcome.metrics["accuracy/intra"]) == 6


def test_pages_of_what_is_too_small_alone_say_so() -> None:
    made = objective(min_tokens=1e6)
    outcome = made(signals(made, told()), None)
    assert outcome.loss == 0
    assert outcome.metrics["too_small"].tolist() == [1.0] * len(TOLD)


def test_what_is_too_small_or_of_one_text_has_no_say() -> None:
    made = objective()
    policy = signals(made, told())
    values = {name: ragged.values.clone() for name, ragged in policy.features.items()}
    for ragged in values.values():
        ragged[3] = 100.0  # covers less than half a token
    moved = replace(policy, features={name: Ragged(own, policy.features[name].row) for name, own in values.items()})
    assert made(moved, None).loss.item() == made(policy, None).loss.item()
    (intra, _) = made(policy.select([0]), None).terms
    values = policy.features[made.seen.name].values.requires_grad_()
    made(policy, None).terms[0].sum.backward()
    assert values.grad is not None
    assert not values.grad[4].any(), "alone on its page"
    assert values.grad[1].any()
    assert intra.count == 3


def test_gradients_are_those_of_finite_differences() -> None:
    made = objective()
    policy = signals(made, told())
    names = (made.seen.name, made.read.name)
    values = [policy.features[name].values.requires_grad_() for name in names]
    parameters = dict(made.named_parameters())

    def loss(*inputs: torch.Tensor) -> torch.Tensor:
        row = policy.features[names[0]].row
        features = {name: Ragged(value, row) for name, value in zip(names, inputs[:2], strict=True)}
        moved = replace(policy, features=features)
        outcome = torch.func.functional_call(made, dict(zip(parameters, inputs[2:], strict=True)), (moved, None))
        return outcome.loss

    assert torch.autograd.gradcheck(loss, (*values, *parameters.values()))
    assert len(parameters) == 3


def test_nothing_to_compare_is_a_zero_on_the_heads() -> None:
    made = objective()
    empty = Signals({}, {}, sources=("x",))
    alone = signals(made, told([TOLD[4]]))
    for policy in (empty, alone, signals(made, told([TOLD[11]]))):
        made.zero_grad()
        outcome = made(policy, None)
        assert [(term.name, term.sum.item(), term.count.item()) for term in outcome.terms] == [
            ("intra", 0, 0),
            ("inter", 0, 0),
        ]
        outcome.loss.backward()
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in made.parameters())


def test_without_coverage_every_object_counts() -> None:
    made = objective()
    regions = replace(told(), coverage=())
    outcome = made(signals(made, regions), None)
    assert outcome.terms[0].count == 10  # the speck is told from two, and has a say
    assert not outcome.metrics["too_small"].any()


def test_the_temperature_stays_in_its_bounds() -> None:
    made = objective(temperature=0.01)
    with torch.no_grad():
        made.log_scale += 5
    made(signals(made, told()), None)
    assert made.log_scale.exp().item() == pytest.approx(100)
    assert not objective(learn_temperature=False).log_scale.requires_grad


def test_weights_and_the_teacher_as_told() -> None:
    made = objective(intra_weight=0.5, inter_weight=2, teacher={"model": "a/b", "layer": 12, "revision": "v1"})
    outcome = made(signals(made, told()), None)
    assert [term.weight for term in outcome.terms] == [0.5, 2]
    assert made.needs.features[1].teacher == Teacher("a/b", layer=12, revision="v1")
    assert made.needs.features[1].name == "teacher:a/b layer 12 revision v1:image"
    assert DocoLike().read.teacher == Teacher("microsoft/layoutlmv3-large")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": {"model": "x", "sise": 3}}, "teacher has no 'sise'; did you mean 'size'"),
        ({"teacher": {"layer": 3}}, "teacher must be a model's name, or a mapping with `model`"),
        ({"teacher": {"model": "x", "kind": "audio"}}, "kind must be one of auto, vision, document"),
        ({"teacher": {"model": "x", "size": 0}}, "size must be a number of pixels above 0"),
        ({"teacher": {"model": "x", "layer": "last"}}, "layer must be a whole number, got 'last'"),
        ({"teacher": {"model": "x", "revision": 3}}, "revision must be text, got 3"),
        ({"column": "images"}, "column must be image or contrast_image, got 'images'"),
        ({"dim": None}, "dim must be a whole number: model and teacher"),
        ({"dim": 2.5}, "dim must be a whole number above 0"),
        ({"intra_weight": 0, "inter_weight": 0}, "nothing is left to train"),
        ({"text_similarity": True}, "text_similarity must be a cosine between 0 and 1"),
        ({"min_tokens": -1}, "min_tokens must be a number of at least 0"),
        ({"temperature": 0.001}, "temperature must be at least 0.01"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="DocoLike: ") as error:
        DocoLike(**options)
    assert message in str(error.value)


def test_heads_must_be_made_first() -> None:
    made = DocoLike()
    regions = told()
    with pytest.raises(ValueError, match="DocoLike: its heads are not made: call set_widths"):
        made(signals(made, regions), None)
