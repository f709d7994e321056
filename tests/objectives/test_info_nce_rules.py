"""The named losses of InfoNCE as objectives, each against a loop; sides, heads, dimensions and tiles."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mllm_align.contract import Ragged, Signals
from mllm_align.objectives import InfoNCE
from mllm_align.objectives.contrast_rules import Rule
from mllm_align.objectives.load import objective_from
from mllm_align.objectives.mochi import Mixing
from mllm_align.objectives.pairs import IMAGE_PROMPT, TEXT_PROMPT

Vectors = list[list[float]]
PROMPTS: dict[str, Any] = {"image_prompt": IMAGE_PROMPT, "text_prompt": TEXT_PROMPT}


def unit(vectors: torch.Tensor) -> Vectors:
    return [(v / math.sqrt(float(v @ v))).tolist() for v in vectors.double()]


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def signals(objective: Any, *values: torch.Tensor, owner: tuple[int, ...] = (), size: int | None = None) -> Signals:
    """The features an objective needs, one a row except of the negatives, whose rows are `owner`."""
    size = size or len(values[0])
    found = {}
    for feature, each in zip(objective.needs.features, values, strict=True):
        own = owner if feature.column == "negatives" else range(len(each))
        found[feature.name] = Ragged(each, torch.tensor(list(own), dtype=torch.long))
    return Signals({}, {}, features=found, sources=("x",) * size)


def both_ways(images: Vectors, texts: Vectors, loss: Callable[[float, list[float], int, str], float]) -> float:
    """The mean over rows and ways of a loss of own cosine, the others', row and way."""
    total, count = 0.0, len(images)
    for n in range(count):
        own = dot(images[n], texts[n])
        total += loss(own, [dot(images[n], texts[m]) for m in range(count) if m != n], n, "image")
        total += loss(own, [dot(images[m], texts[n]) for m in range(count) if m != n], n, "text")
    return total / (2 * count)


def cross_entropy(own: float, others: list[float]) -> float:
    return math.log(math.exp(own) + sum(map(math.exp, others))) - own


def decoupled(own: float, others: list[float], *_: Any) -> float:
    return math.log(sum(math.exp(10 * s) for s in others)) - 10 * own


def hard(own: float, others: list[float], *_: Any) -> float:
    logits = [2 * s for s in others]
    mean = sum(map(math.exp, logits)) / len(logits)
    below = (sum(math.exp(x) / mean * math.exp(x) for x in logits) - 0.1 * len(logits) * math.exp(2 * own)) / 0.9
    return math.log(math.exp(2 * own) + max(below, len(logits) * math.exp(-2))) - 2 * own


def reweighed(own: float, others: list[float], *_: Any) -> float:
    logits = [s / 0.07 for s in others]
    total = sum(math.exp(0.5 * x) for x in logits)
    below = sum(len(logits) * math.exp(0.5 * x) / total * math.exp(x) for x in logits)
    return math.log(math.exp(own / 0.07) + below) - own / 0.07


def hardened(own: float, others: list[float], *_: Any) -> float:
    return cross_entropy(50 * own, [(50 + 9) * s for s in others])


@pytest.mark.parametrize(
    ("name", "loss"), [("dcl", decoupled), ("hcl", hard), ("hn_nce_like", reweighed), ("llave", hardened)]
)
def test_named_losses(name: str, loss: Callable[..., float]) -> None:
    objective = objective_from(f"info_nce.{name}")
    images, texts = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    got = objective(signals(objective, images, texts), None).loss.item()
    assert got == pytest.approx(both_ways(unit(images), unit(texts), loss), rel=1e-5)


def test_weighted_positives() -> None:
    objective = InfoNCE.dclw()
    images, texts = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    one, other = unit(images), unit(texts)
    own = [math.exp(dot(a, b) / 0.5) for a, b in zip(one, other, strict=True)]
    weight = [2 - 5 * value / sum(own) for value in own]
    assert sum(weight) == pytest.approx(5)

    def loss(s: float, others: list[float], n: int, _: str) -> float:
        return decoupled(s, others) + (1 - weight[n]) * 10 * s

    got = objective(signals(objective, images, texts), None).loss.item()
    assert got == pytest.approx(both_ways(one, other, loss), rel=1e-5)


@pytest.mark.parametrize(("continuous", "teacher"), [("image", "a/teacher"), ("image", None), ("both", None)])
def test_continuous_weights(continuous: str, teacher: str | None) -> None:
    """Images weigh the texts of images that are like them; texts do so where it is asked for."""
    objective = InfoNCE.cwcl(continuous=continuous, teacher=teacher, temperature=0.2)
    images, texts, seen = (torch.randn(4, 5, dtype=torch.float64) for _ in range(3))
    given = (images, texts, *([seen] if teacher else []))
    one, other = unit(images), unit(texts)
    alike = {"image": unit(seen) if teacher else one, "text": other}
    total = 0.0
    for way, anchors, keys in (("image", one, other), ("text", other, one)):
        for n in range(4):
            logits = [5 * dot(anchors[n], key) for key in keys]
            log_z = math.log(sum(map(math.exp, logits)))
            weigh = way == "image" or continuous == "both"
            weights = [dot(alike[way][n], v) / 2 + 0.5 if weigh else float(m == n) for m, v in enumerate(alike[way])]
            total += sum(w * (log_z - s) for w, s in zip(weights, logits, strict=True)) / sum(weights) / 8
    assert objective(signals(objective, *given), None).loss.item() == pytest.approx(total, rel=1e-5)
    assert ("alike:image" in [feature.name for feature in objective.needs.features]) == bool(teacher)


def test_continuous_weights_want_somebody_who_tells_what_is_alike() -> None:
    with pytest.raises(ValueError, match=r"'info_nce\.cwcl' needs a value for teacher"):
        objective_from("info_nce.cwcl")


def test_hardest_negatives_without_false_ones() -> None:
    objective = InfoNCE.uni_me(hardest=2, temperature=0.1)
    images, texts = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
    one, other = unit(images), unit(texts)
    total = dropped = 0.0
    for n in range(8):
        own = dot(one[n], other[n])
        others = [dot(one[n], other[m]) for m in range(8) if m != n]
        left = sorted((s for s in others if s <= own + 0.1), reverse=True)[:2]
        dropped += len(others) - sum(s <= own + 0.1 for s in others)
        total += cross_entropy(10 * own, [10 * s for s in left]) / 8 if left else 0
    assert dropped > 0
    assert objective(signals(objective, images, texts), None).loss.item() == pytest.approx(total, rel=1e-5)


def test_what_a_row_lists_is_no_false_negative_of_it() -> None:
    """However near to its image: it is false, which of a text of another row nobody knows."""
    objective = InfoNCE.uni_me(hardest=3, temperature=0.1, negatives=True, **PROMPTS)
    images, texts, false = (torch.randn(n, 3, dtype=torch.float64) for n in (5, 5, 4))
    owner = (1, 1, 2, 4)
    false[1], false[3] = images[1], images[0]
    one, other, wrong = unit(images), unit(texts), unit(false)
    total = 0.0
    for n in range(5):
        own = dot(one[n], other[n])
        keys = [(dot(one[n], other[m]), False) for m in range(5) if m != n]
        keys += [(dot(one[n], v), row == n) for v, row in zip(wrong, owner, strict=True)]
        left = sorted((s for s, certain in keys if certain or s <= own + 0.1), reverse=True)[:3]
        assert (1.0 in [round(s, 9) for s in left]) == (n == 1)
        total += cross_entropy(10 * own, [10 * s for s in left]) / 5 if left else 0
    given = signals(objective, images, texts, false, owner=owner)
    assert objective(given, None).loss.item() == pytest.approx(total, rel=1e-5)


def test_false_texts_are_keys_of_every_image() -> None:
    """Of a row without an image or a text they are not; and what is nearest is told for each row that has any."""
    objective = InfoNCE.negclip(temperature=0.25, **PROMPTS)
    assert [feature.column for feature in objective.needs.features] == ["image", "chosen", "negatives"]
    images, texts, false = (torch.randn(n, 5, dtype=torch.float64) for n in (4, 3, 5))
    owner = (0, 0, 2, 3, 3)
    given = signals(objective, images, texts, false, owner=owner)
    outcome = objective(given, None)
    one, other, wrong = unit(images)[:3], unit(texts), unit(false)[:3]

    def loss(own: float, others: list[float], n: int, way: str) -> float:
        further = [dot(one[n], v) for v in wrong] if way == "image" else []
        return cross_entropy(4 * own, [4 * s for s in others + further])

    assert outcome.terms[0].count.item() == 3
    assert outcome.loss.item() == pytest.approx(both_ways(one, other, loss), rel=1e-5)
    right = [
        float(all(dot(one[n], other[n]) > dot(one[n], wrong[m]) for m in range(3) if owner[m] == n)) for n in (0, 2)
    ]
    assert outcome.metrics["accuracy/negatives"].tolist() == right
    none = signals(objective, images, texts, false[:0])
    plain = InfoNCE(temperature=0.25, **PROMPTS)
    assert objective(none, None).loss.item() == plain(signals(plain, images, texts), None).loss.item()
    assert objective(none, None).metrics["accuracy/negatives"].numel() == 0


def test_synthetic_negatives_are_the_same_for_the_same_rows() -> None:
    options: dict[str, Any] = {"hardest": 3, "of_keys": 4, "of_anchor": 2}
    objective, plain = InfoNCE.mochi_like(**options), InfoNCE(temperature=0.2)
    images, texts = torch.randn(5, 6), torch.randn(5, 6)
    given = dataclasses.replace(signals(objective, images, texts), row_ids=tuple("abcde"))
    once, again = objective(given, None).loss.item(), objective(given, None).loss.item()
    assert once == again
    assert once > plain(signals(plain, images, texts), None).loss.item()
    assert once != objective(dataclasses.replace(given, row_ids=tuple("abcdx")), None).loss.item()
    assert objective.how.mixing == Mixing(3, 4, 2)


def test_synthetic_negatives_of_a_memory_of_slow_keys() -> None:
    objective = InfoNCE.mochi_like(4, 4, 2, memory=6, momentum=0.9)
    objective.set_widths({feature.name: 4 for feature in objective.needs.features})
    values = [torch.randn(3, 4, requires_grad=True) for _ in range(4)]
    first, second = (objective(signals(objective, *values), None).loss for _ in range(2))
    second.backward()
    assert second > first
    assert [value.grad is not None for value in values] == [True, True, False, False]


@pytest.mark.parametrize("sides", ["image_to_text", "text_to_image"])
def test_one_way(sides: str) -> None:
    objective = InfoNCE(temperature=0.5, sides=sides)
    images, texts = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    one, other = (unit(images), unit(texts)) if sides == "image_to_text" else (unit(texts), unit(images))
    expected = [
        cross_entropy(2 * dot(one[n], other[n]), [2 * dot(one[n], other[m]) for m in range(4) if m != n])
        for n in range(4)
    ]
    got = objective(signals(objective, images, texts), None).loss.item()
    assert got == pytest.approx(sum(expected) / 4, rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"memory": 4}, {"negatives": True}, {"rule": {"positive_weight": 0.0}}])
def test_leading_dimensions_are_embeddings_by_themselves(options: dict[str, Any]) -> None:
    """The mean of the loss at each and at all, a memory's keys cut too; the width itself counts once."""
    images, texts, false = torch.randn(4, 6), torch.randn(4, 6), torch.randn(2, 6)
    vectors = (images, texts, *([false] if options.get("negatives") else []))

    def losses(objective: InfoNCE, size: int) -> list[float]:
        objective.set_widths({feature.name: size for feature in objective.needs.features})
        cut = [each[:, :size] for each in vectors]
        given = dataclasses.replace(signals(objective, *cut, owner=(0, 3)), row_ids=tuple("abcd"))
        other = dataclasses.replace(given, row_ids=tuple("efgh"))
        return [objective(each, None).loss.item() for each in (given, other)]

    expected = [losses(InfoNCE(**PROMPTS, **options), size) for size in (2, 4, 6)]
    for dimensions in ((2, 4), (2, 4, 6)):
        nested = InfoNCE(**PROMPTS, **options, dimensions=dimensions)
        got = losses(nested, 6)
        assert got == pytest.approx([sum(each) / 3 for each in zip(*expected, strict=True)], rel=1e-5)
        assert nested.embedding.dimensions == dimensions


def test_heads_are_part_of_the_embedding_and_learn() -> None:
    objective = InfoNCE(**PROMPTS, text="caption", dim=3, memory=4)
    widths = {feature.name: 5 for feature in objective.needs.features}
    objective.set_widths(widths)
    outcome = objective(signals(objective, torch.randn(4, 5), torch.randn(4, 5)), None)
    outcome.loss.backward()
    assert set(objective.embedding.heads) == {"image", "text"}
    for head in objective.embedding.heads.values():
        assert all(p.grad is not None and p.grad.any() for p in head.parameters())
    assert objective.images_before is not None
    assert objective.images_before.keys.shape == (4, 3)
    assert objective.embedding.features["text"].column == "caption"
    assert objective.embedding.features["image"].prompt == IMAGE_PROMPT


@pytest.mark.parametrize("tile", [1, 3, 100])
@pytest.mark.parametrize(
    "options", [{}, {"negatives": True}, {"rule": Rule(positive_weight=0.0)}, {"sides": "text_to_image"}]
)
def test_tiles_change_nothing(tile: int, options: dict[str, Any]) -> None:
    found = []
    for way in (None, tile):
        torch.manual_seed(0)
        objective = InfoNCE(**PROMPTS, **options, dimensions=(3,), tile=way).double()
        vectors = [torch.randn(n, 6, dtype=torch.float64, requires_grad=True) for n in (7, 7, 4)]
        given = vectors if options.get("negatives") else vectors[:2]
        outcome = objective(signals(objective, *given, owner=(1, 1, 4, 6)), None)
        outcome.loss.backward()
        grads = [each.grad for each in given if each.grad is not None]
        found.append((outcome.loss, outcome.metrics, grads, objective.log_scale.grad))
    whole, tiled = found
    torch.testing.assert_close(tiled[0], whole[0])
    assert whole[1].keys() == tiled[1].keys()
    for name, value in whole[1].items():
        torch.testing.assert_close(tiled[1][name], value, check_dtype=False)
    torch.testing.assert_close(tiled[2], whole[2])
    torch.testing.assert_close(tiled[3], whole[3])


@pytest.mark.parametrize("tile", [None, 3])
@pytest.mark.parametrize("size", [2, 7])
def test_vectors_that_are_all_alike_find_nothing(size: int, tile: int | None) -> None:
    objective = InfoNCE(tile=tile)
    alike = torch.randn(1, 301).expand(size, -1)
    outcome = objective(signals(objective, alike, alike), None)
    assert outcome.loss.item() == pytest.approx(math.log(size), rel=1e-5)
    assert outcome.metrics["accuracy/image_to_text"].tolist() == [0] * size
    assert outcome.metrics["accuracy/text_to_image"].tolist() == [0] * size
    assert outcome.metrics["ties"].tolist() == [2 * (size - 1)] * size


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"continuous": "text"}, "continuous must be 'image', 'both' or nothing, got 'text'"),
        ({"teacher": "a/teacher"}, "give continuous, or leave teacher out"),
        ({"image": "prompt", "teacher": "a/t", "continuous": "image"}, "a teacher is shown an image column"),
        ({"negatives": True, "sides": "text_to_image", **PROMPTS}, "leave sides at 'both'"),
        ({"negatives": True, "soft_targets": 0.4, "momentum": 0.9, **PROMPTS}, "leave one of both out"),
        ({"negatives": True}, "negatives are read before an instruction: give text_prompt"),
        ({"continuous": "both", "sides": "image_to_text"}, "continuous 'both' is of both ways"),
        ({"rule": {"hardness": 5.0, "hardness_on": "explicit"}}, "of listed negatives: set negatives or say 'all'"),
        ({"rule": {"bta": 1}}, "rule has no 'bta'"),
        ({"mixing": {"of_keys": -1}}, "mixing: of_keys must be a whole number of at least 0, got -1"),
        ({"mixing": 3}, "mixing must be a mapping of hardest, of_keys, of_anchor, seed, got 3"),
        ({"tile": 8, "memory": 4}, "memory needs all similarities at once: leave tile out"),
        ({"dimensions": (4, 2)}, "dimensions must be whole numbers above 0 that rise"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"InfoNCE: .*{told}|InfoNCE: {told}"):
        InfoNCE(**options)


def test_presets_take_options_but_no_rule() -> None:
    given = objective_from({"name": "info_nce.hcl", "beta": 2.0, "temperature": 0.25, "text": "rejected"})
    assert isinstance(given, InfoNCE)
    assert given.how.rule == Rule(beta=2.0, tau_plus=0.1)
    assert given.pairs.text == "rejected"
    assert 1 / given.log_scale.exp().item() == pytest.approx(0.25)
    for options in ({"rule": {"beta": 1}}, {"temperatur": 1.0}):
        with pytest.raises(ValueError, match=f"InfoNCE.dcl has no option '{next(iter(options))}'"):
            objective_from({"name": "info_nce.dcl", **options})
