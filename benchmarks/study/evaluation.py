"""What a trained arm is asked: closed questions by log-probability, captions by greedy decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from answer_losses import losses
from mllm_align.data.world import (
    existence_questions,
    instruction_rows,
    mentioned,
    pair_questions,
    questions,
    render,
    scenes,
)
from mllm_align_eval.benchmarks.world import world_item
from mllm_align_eval.engine import ModelEngine, Request
from mllm_align_eval.items import Item
from mllm_align_eval.runner import answer

BATCH = 100
NUM_SCENES, NUM_PAIRS, NUM_POLLS, NUM_CAPTIONS, NUM_ANSWERS = 300, 300, 200, 150, 500
VALIDATION_SCENES, VALIDATION_PAIRS = 150, 100
METRICS = ("adversarial", "pairs", "existence", "visual_gap", "in_distribution", "loss", "chair", "recall")
CAPTION_PROMPT, CAPTION_TOKENS = "Describe the picture.", 60


class Part(NamedTuple):
    """One column of per-unit numbers: the cluster of each unit and its value, summed over the column of `base`."""

    clusters: list[str]
    values: list[float]
    base: list[float]


@cache
def test_items() -> dict[str, list[Item]]:
    """By split."""
    asked = {
        "in_distribution": questions("test_in_distribution", NUM_SCENES),
        "adversarial": questions("test_adversarial", NUM_SCENES),
        "existence": existence_questions("adversarial", NUM_POLLS),
        "pairs": pair_questions(NUM_PAIRS),
    }
    return {split: [world_item(question, split) for question in found] for split, found in asked.items()}


@cache
def validation_items() -> dict[str, list[Item]]:
    """By split; no scene of the test is among them."""
    asked = {
        "in_distribution": questions("validation", VALIDATION_SCENES, distribution="prior"),
        "adversarial": questions("validation", VALIDATION_SCENES, distribution="broken"),
        "pairs": pair_questions(VALIDATION_PAIRS, split="validation"),
    }
    return {split: [world_item(question, split) for question in found] for split, found in asked.items()}


@cache
def answers() -> list[dict[str, Any]]:
    """Instruction rows of in-distribution test scenes, all of whose answers are true."""
    return instruction_rows(NUM_ANSWERS, split="test_in_distribution", noise=0.0)


def validation_score(model: Any, processor: Any) -> dict[str, float]:
    """Accuracies on validation, and their mean "score": the one number by which settings are chosen."""
    right = {split: _right(model, processor, items, "right") for split, items in validation_items().items()}
    found = {split: sum(values) / len(values) for split, values in right.items()}
    found["pairs"] = sum(_both(right["pairs"])) / (len(right["pairs"]) // 2)
    return found | {"score": sum(found.values()) / len(found)}


def test_parts(model: Any, processor: Any) -> dict[str, Part]:
    """The test's columns, one for each of `METRICS`."""
    items = test_items()
    right = {split: _right(model, processor, asked, "right") for split, asked in items.items()}
    found = {
        split: Part([item.cluster for item in items[split]], right[split], [1.0] * len(right[split]))
        for split in ("adversarial", "existence", "in_distribution")
    }
    pairs = _both(right["pairs"])
    found["pairs"] = Part([item.cluster for item in items["pairs"][::2]], pairs, [1.0] * len(pairs))
    other = _right(model, processor, items["adversarial"], "other")
    gap = [own - wrong for own, wrong in zip(right["adversarial"], other, strict=True)]
    found["visual_gap"] = found["adversarial"]._replace(values=gap)
    nats, tokens, ids = losses(model, processor, answers())
    found["loss"] = Part(ids, nats, tokens)
    return found | caption_parts(model, processor)


def caption_parts(model: Any, processor: Any) -> dict[str, Part]:
    """CHAIR-style columns over captions of adversarial scenes (Rohrbach et al., 2018, arXiv 1809.02156).

    `chair`: objects named that are not there, over objects named. `recall`: objects there that are named.
    """
    shown = scenes("test_adversarial", NUM_CAPTIONS)
    engine, texts = ModelEngine(model, processor), []
    for start in range(0, len(shown), BATCH):
        requests = [Request((render(scene),), CAPTION_PROMPT, ()) for scene in shown[start : start + BATCH]]
        texts += [generated.text for generated in engine.generate(requests, CAPTION_TOKENS)]
    named = [set(mentioned(text)) for text in texts]
    there = [set(scene.shapes) for scene in shown]
    clusters = [scene.content_hash for scene in shown]
    both = list(zip(named, there, strict=True))
    return {
        "chair": Part(clusters, [float(len(a - b)) for a, b in both], [float(len(a)) for a, _ in both]),
        "recall": Part(clusters, [float(len(a & b)) for a, b in both], [float(len(b)) for _, b in both]),
    }


def _right(model: Any, processor: Any, items: Sequence[Item], image: Any) -> list[float]:
    given = answer(model, processor, items, image=image, method="logprob", batch_size=BATCH, identity="study")
    return [float(entry.right) for entry in given]


def _both(right: Sequence[float]) -> list[float]:
    return [first * second for first, second in zip(right[::2], right[1::2], strict=True)]


def packed(parts: Mapping[str, Part]) -> dict[str, dict[str, list[float]]]:
    """Values alone, as small JSON: clusters and bases of the closed questions are the same for every run."""
    return {
        name: {"values": _whole(part.values)} | ({"base": _whole(part.base)} if set(part.base) != {1.0} else {})
        for name, part in parts.items()
    }


def _whole(values: Sequence[float]) -> list[Any]:
    return [int(value) if value == int(value) else round(value, 4) for value in values]


def clusters() -> dict[str, list[str]]:
    """Per column the cluster of each unit."""
    items = test_items()
    own = {split: [item.cluster for item in items[split]] for split in ("adversarial", "existence", "in_distribution")}
    captioned = [scene.content_hash for scene in scenes("test_adversarial", NUM_CAPTIONS)]
    pairs = [item.cluster for item in items["pairs"][::2]]
    asked = {"pairs": pairs, "visual_gap": own["adversarial"], "loss": [row["id"] for row in answers()]}
    return own | asked | {"chair": captioned, "recall": captioned}
