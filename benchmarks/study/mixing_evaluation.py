"""What an arm of the mixing study is asked: colour, to which the model's own tower is blind, and all else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from mllm_align.data.world import pair_questions, questions
from mllm_align_eval.benchmarks.world import world_item
from mllm_align_eval.items import Item
from mllm_align_eval.runner import answer

BATCH = 100
NUM_COLOUR, NUM_OTHER, NUM_PAIRS = 300, 200, 150
VALIDATION_COLOUR, VALIDATION_OTHER = 150, 75
HIDDEN = ("colour",)
OTHERS = ("existence", "size", "side", "count", "relation")
OTHER_PAIRS = ("existence", "size", "side")


class Part(NamedTuple):
    """One number per unit, and the cluster of each."""

    values: list[float]
    clusters: list[str]


@cache
def test_items() -> dict[str, list[Item]]:
    """By column, of balanced scenes that no training or validation shows; pairs are two items each."""
    split = "test_adversarial"  # its scenes, but balanced
    asked = {
        "colour": questions(split, NUM_COLOUR, distribution="balanced", kinds=HIDDEN),
        "others": questions(split, NUM_OTHER, distribution="balanced", kinds=OTHERS),
        "colour_pairs": pair_questions(NUM_PAIRS, kinds=HIDDEN),
        "other_pairs": pair_questions(NUM_PAIRS, kinds=OTHER_PAIRS),
    }
    return {name: [world_item(question, name) for question in found] for name, found in asked.items()}


def test_parts(model: Any, processor: Any) -> dict[str, Part]:
    """Right or wrong of `colour` and `others`; of pairs whether both are right."""
    found = {}
    for name, items in test_items().items():
        right = _right(model, processor, items)
        clusters = [item.cluster for item in items]
        if name.endswith("pairs"):
            right = [first * second for first, second in zip(right[::2], right[1::2], strict=True)]
            clusters = clusters[::2]
        found[name] = Part(right, clusters)
    return found


def validation_score(model: Any, processor: Any) -> float:
    """The mean of the accuracies of colour and of all else, on scenes that no test shows."""
    asked = (
        questions("validation", VALIDATION_COLOUR, distribution="balanced", kinds=HIDDEN),
        questions("validation", VALIDATION_OTHER, distribution="balanced", kinds=OTHERS),
    )
    scores = []
    for found in asked:
        right = _right(model, processor, [world_item(question, "validation") for question in found])
        scores.append(sum(right) / len(right))
    return sum(scores) / len(scores)


def _right(model: Any, processor: Any, items: Sequence[Item]) -> list[float]:
    given = answer(model, processor, items, method="logprob", batch_size=BATCH, identity="study")
    return [float(entry.right) for entry in given]


def packed(parts: Mapping[str, Part]) -> dict[str, dict[str, list[int]]]:
    """Values, and clusters by number, as small JSON."""
    found = {}
    for name, part in parts.items():
        numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(part.clusters))}
        found[name] = {
            "values": [int(value) for value in part.values],
            "clusters": [numbers[cluster] for cluster in part.clusters],
        }
    return found
