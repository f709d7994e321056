"""RegionText against loops in float64: who is whose negative, and the losses over them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mllm_align.contract import Ragged, Regions, Signals
from mllm_align.objectives import RegionText

BOX, OTHER = (0.0, 0.0, 0.2, 0.2), (0.5, 0.5, 0.9, 0.9)
# Row, image, id, text, class, box.
TOLD: tuple[tuple[Any, ...], ...] = (
    (0, 0, "a", "a cup", "cup", BOX),
    (0, 0, "b", "a man", "person", OTHER),
    (0, 0, "", "his hat", "hat", (0.6, 0.6, 0.7, 0.95)),
    (0, 0, "c", "", "", (0.1, 0.6, 0.3, 0.9)),
    (0, 1, "a", "the cup again", "", BOX),
    (1, 0, "a", "A Cup", "", BOX),
    (1, 0, "d", "the man at the right", "person", OTHER),
    (2, 0, "", "a tree", "", BOX),
)
NAMED = [n for n, entry in enumerate(TOLD) if entry[3]]


def signals(regions: torch.Tensor, texts: torch.Tensor, told: Any = TOLD, column: str = "image") -> Signals:
    row, image, ids, names, kinds, boxes = zip(*told, strict=True)
    features = {
        f"regions:{column}": Ragged(regions, torch.tensor(row)),
        f"region_texts:{column}": Ragged(texts, torch.tensor(row)),
    }
    return Signals(
        {}, {}, features=features, sources=("x",) * 3, regions={column: Regions(row, image, boxes, ids, names, kinds)}
    )


def drawn(width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    regions, texts = torch.randn(2, len(TOLD), width, generator=generator, dtype=torch.float64)
    texts[3] = 0
    return regions, texts


def inside(one: Any, other: Any) -> float:
    """The share of the smaller box's points that lie in the other."""
    small, large = sorted((one, other), key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
    steps = [(k + 0.5) / 40 for k in range(40)]
    points = [
        (small[0] + x * (small[2] - small[0]), small[1] + y * (small[3] - small[1])) for x in steps for y in steps
    ]
    return sum(large[0] < x < large[2] and large[1] < y < large[3] for x, y in points) / len(points)


def negatives(same_class: bool = True, overlap: float = 0.5, near: Any = None) -> dict[int, list[int]]:
    """Of each named region the others whose texts are its negatives; `near` tells of two whether their texts agree."""
    found: dict[int, list[int]] = {}
    for n in NAMED:
        row, image, name, text, kind, box = TOLD[n]
        found[n] = []
        for m in NAMED:
            other = TOLD[m]
            same_thing = row == other[0] and name != "" and name == other[2]
            nested = (row, image) == other[:2] and inside(box, other[5]) > overlap
            alike = kind != "" and kind == other[4]
            if n == m or same_thing or nested or text.lower() == other[3].lower() or (not same_class and alike):
                continue
            if near is not None and near(n, m):
                continue
            found[n].append(m)
    return found


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(one @ other) / math.sqrt(float(one @ one)) / math.sqrt(float(other @ other))


def direction(own: torch.Tensor, keys: torch.Tensor, scale: float, decoupled: bool, **masks: Any) -> list[float]:
    losses = []
    for n, others in negatives(**masks).items():
        below = sum(math.exp(scale * cosine(own[n], keys[m])) for m in others)
        positive = math.exp(scale * cosine(own[n], keys[n]))
        losses.append(-math.log(positive / (below if decoupled else below + positive)))
    return losses


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("sides", ["both", "region_to_text", "text_to_region"])
def test_softmax(sides: str, decoupled: bool) -> None:
    regions, texts = drawn()
    objective = RegionText(sides=sides, temperature=0.5, decoupled=decoupled, dim=None)
    (term,) = objective(signals(regions, texts), None).terms
    towards, back = (direction(*each, 2.0, decoupled) for each in ((regions, texts), (texts, regions)))
    expected = {"region_to_text": sum(towards), "text_to_region": sum(back), "both": (sum(towards) + sum(back)) / 2}
    assert term.count == len(NAMED)
    assert term.sum.item() == pytest.approx(expected[sides], abs=1e-6)


@pytest.mark.parametrize("masks", [{"same_class": False}, {"overlap": 1.0}])
def test_other_masks_and_metrics(masks: dict[str, Any]) -> None:
    regions, texts = drawn()
    outcome = RegionText(sides="region_to_text", temperature=0.5, dim=None, **masks)(signals(regions, texts), None)
    assert outcome.terms[0].sum.item() == pytest.approx(sum(direction(regions, texts, 2.0, False, **masks)), abs=1e-6)
    others = negatives(**masks)
    assert others != negatives()
    assert outcome.metrics["negatives"].tolist() == [len(own) for own in others.values()]
    right = [
        cosine(regions[n], texts[n]) > max(cosine(regions[n], texts[m]) for m in own) for n, own in others.items()
    ]
    assert outcome.metrics["accuracy"].tolist() == right
    gaps = [
        cosine(regions[n], texts[n]) - sum(cosine(regions[n], texts[m]) for m in own) / len(own)
        for n, own in others.items()
    ]
    assert outcome.metrics["gap"].tolist() == pytest.approx(gaps)
    assert outcome.metrics["temperature"].item() == pytest.approx(0.5)


def test_continuous_weights() -> None:
    regions, texts = drawn()
    objective = RegionText(sides="region_to_text", temperature=0.5, continuous=True, dim=None)
    expected = 0.0
    for n, others in negatives().items():
        keys = others + [m for m in NAMED if TOLD[m][3].lower() == TOLD[n][3].lower()]
        z = sum(math.exp(2 * cosine(regions[n], texts[m])) for m in keys)
        weights = {m: cosine(texts[n], texts[m]) / 2 + 0.5 for m in keys}
        each = sum(w * -math.log(math.exp(2 * cosine(regions[n], texts[m])) / z) for m, w in weights.items())
        expected += each / sum(weights.values())
    assert objective(signals(regions, texts), None).terms[0].sum.item() == pytest.approx(expected, abs=1e-6)


def test_sigmoid_over_distinct_texts() -> None:
    """Detic's form: classes are the distinct texts; what may be true of a region is neither yes nor no."""
    regions, texts = drawn()
    texts[5] = texts[0]  # one text, but for its capitals
    objective = RegionText(loss="sigmoid", temperature=0.5, bias=-1.0, negative_weight=0.3, dim=None)
    distinct = [n for n in NAMED if n != 5]
    expected = 0.0
    for n in NAMED:
        for m in distinct:
            logit = 2 * cosine(regions[n], texts[m]) - 1
            called_so = [k for k in NAMED if TOLD[k][3].lower() == TOLD[m][3].lower()]
            if n in called_so:
                expected += math.log(1 + math.exp(-logit))
            elif all(k in negatives()[n] for k in called_so):
                expected += 0.3 * math.log(1 + math.exp(logit))
    (term,) = objective(signals(regions, texts), None).terms
    assert term.sum.item() == pytest.approx(expected, abs=1e-6)
    term.sum.backward()
    assert objective.bias is not None
    assert objective.bias.grad is not None


def test_heads_are_made_when_widths_are_known() -> None:
    regions, texts = drawn()
    objective = RegionText(dim=3, temperature=0.5).double()
    with pytest.raises(ValueError, match="call set_widths"):
        objective(signals(regions, texts), None)
    widths = {"regions:image": 5, "region_texts:image": 5}
    objective.set_widths(widths)
    objective.set_widths(widths)
    objective.double()
    heads = objective.projection.heads
    moved = [regions @ heads["regions"].weight.T, texts @ heads["texts"].weight.T]
    plain = RegionText(dim=None, temperature=0.5)
    with torch.no_grad():
        expected = plain(signals(*moved), None).terms[0].sum
    found = objective(signals(regions, texts), None).terms[0].sum
    torch.testing.assert_close(found.detach(), expected)
    found.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())
    with pytest.raises(ValueError, match=r"its heads are made for widths .* not"):
        objective.set_widths(widths | {"regions:image": 6})
    with pytest.raises(ValueError, match="both sides must be of one width"):
        plain.set_widths({"regions:image": 4, "region_texts:image": 5})
    with pytest.raises(ValueError, match="width of feature 'region_texts:image' is not told"):
        RegionText().set_widths({"regions:image": 4})


def nearly_agreeing() -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Three texts that are not equal and nearly agree, in rows of their own."""
    regions, texts = drawn()
    texts[1], texts[6] = texts[7] + 0.1, texts[7] - 0.1
    return regions, texts, lambda n, m: cosine(texts[n], texts[m]) > 0.8


@pytest.mark.parametrize("decoupled", [False, True])
def test_texts_that_nearly_agree_are_no_negatives(decoupled: bool) -> None:
    regions, texts, near = nearly_agreeing()
    outcome = RegionText(temperature=0.5, text_similarity=0.8, decoupled=decoupled, dim=None)(
        signals(regions, texts), None
    )
    ways = [direction(*each, 2.0, decoupled, near=near) for each in ((regions, texts), (texts, regions))]
    others = negatives(near=near)
    assert sum(map(len, others.values())) < sum(map(len, negatives().values()))
    assert outcome.terms[0].sum.item() == pytest.approx(sum(map(sum, ways)) / 2, abs=1e-6)
    assert outcome.metrics["negatives"].tolist() == [len(own) for own in others.values()]


def test_a_region_that_nothing_is_left_of_counts_with_loss_zero() -> None:
    """Counts must not depend on what is measured: they are known before it is."""
    regions, texts = drawn()
    texts = texts[:1] + 0.01 * texts
    plain = RegionText(temperature=0.5, dim=None)(signals(regions, texts), None)
    outcome = RegionText(temperature=0.5, text_similarity=0.9, dim=None)(signals(regions, texts), None)
    assert outcome.terms[0].count == plain.terms[0].count == len(NAMED)
    assert (outcome.terms[0].sum.item(), outcome.metrics["negatives"].tolist()) == (0, [0] * len(NAMED))
    assert len(outcome.metrics["accuracy"]) == len(outcome.metrics["gap"]) == 0


def test_the_sigmoid_says_neither_of_texts_that_nearly_agree() -> None:
    regions, texts, near = nearly_agreeing()
    texts[5] = texts[0]
    objective = RegionText(
        loss="sigmoid", temperature=0.5, bias=-1.0, negative_weight=0.3, text_similarity=0.8, dim=None
    )
    expected = 0.0
    for n, others in negatives(near=near).items():
        for m in (m for m in NAMED if m != 5):
            logit = 2 * cosine(regions[n], texts[m]) - 1
            called_so = [k for k in NAMED if TOLD[k][3].lower() == TOLD[m][3].lower()]
            if n in called_so:
                expected += math.log(1 + math.exp(-logit))
            elif all(k in others for k in called_so):
                expected += 0.3 * math.log(1 + math.exp(logit))
    assert objective(signals(regions, texts), None).terms[0].sum.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"loss": "sigmoid"}, {"decoupled": True}, {"text_similarity": 0.5, "sides": "region_to_text"}]
)
def test_gradients(options: dict[str, Any]) -> None:
    regions, texts = (values.requires_grad_(True) for values in drawn(3))
    objective = RegionText(dim=None, temperature=0.5, **options).double()
    assert torch.autograd.gradcheck(lambda r, t: objective(signals(r, t), None).terms[0].sum, (regions, texts))


def test_two_columns() -> None:
    regions, texts = drawn()
    one, other = signals(regions, texts), signals(regions + 1, texts, column="contrast_image")
    both = Signals({}, {}, features={**one.features, **other.features}, regions={**one.regions, **other.regions})
    outcome = RegionText(columns=("image", "contrast_image"), dim=None)(both, None)
    assert outcome.terms[0].count == 2 * len(NAMED)
    # The same text on the other image, too, is no negative: everyone has the double of its own.
    assert outcome.metrics["negatives"].sum() > 2 * sum(map(len, negatives().values()))
    named = RegionText(columns="image", dim=None)(both, None).terms[0]
    assert named.sum.item() == pytest.approx(RegionText(dim=None)(one, None).terms[0].sum.item())


def test_nothing_to_tell_apart_is_zero_with_the_parameters_in_the_graph() -> None:
    objective = RegionText(dim=4, loss="sigmoid")
    objective.set_widths({"regions:image": 5, "region_texts:image": 5})
    nameless = [(*entry[:3], "", *entry[4:]) for entry in TOLD]
    for given in (Signals({}, {}, sources=("x",)), signals(*drawn(), told=nameless)):
        objective.zero_grad()
        outcome = objective(given, None)
        assert outcome.terms[0].count == 0
        outcome.loss.backward()
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in objective.parameters())
    alone = objective(signals(*(values[:1] for values in drawn()), told=TOLD[:1]), None)
    assert (alone.loss.item(), alone.terms[0].count.item()) == (0, 0)


def test_the_temperature_stays_in_its_bounds() -> None:
    objective = RegionText(dim=None)
    with torch.no_grad():
        objective.log_scale += 5
    objective(signals(*drawn()), None)
    assert objective.log_scale.exp().item() == pytest.approx(100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ("images",)}, "columns must be among image, contrast_image"),
        ({"loss": "hinge"}, "loss must be one of softmax, sigmoid, got 'hinge'"),
        ({"sides": "one"}, "sides must be one of both"),
        ({"temperature": 0.001}, "temperature must be at least 0.01"),
        ({"dim": 0}, "dim must be a whole number above 0"),
        ({"bias": "low"}, "bias must be a number"),
        ({"loss": "sigmoid", "decoupled": True}, "leave them to loss='softmax'"),
        ({"continuous": True, "decoupled": True}, "continuous weights are of texts"),
        ({"text_similarity": 1}, "text_similarity must be a cosine between 0 and 1"),
        ({"text_similarity": 0.9, "continuous": True}, "continuous pulls towards what text_similarity leaves"),
        ({"negative_weight": 0}, "negative_weight must be a number above 0"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionText(**options)
