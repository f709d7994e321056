"""What an arm of the discriminative study is asked: retrieval, hard negatives, and what it still says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from answer_losses import losses
from mllm_align.data.world import hard_negative_items, instruction_rows, pair_questions, questions, retrieval_pool
from mllm_align_eval.benchmarks.world import world_item
from mllm_align_eval.items import Item
from mllm_align_eval.runner import answer
from mllm_align_eval.similarity import Encoder, Vectors, cosines

BATCH = 100
POOL, POOLS, NEGATIVES_SEED = 256, (1, 2), 1
PER_KIND, NUM_SCENES, NUM_ADVERSARIAL, NUM_PAIRS, NUM_ANSWERS = 150, 1500, 300, 300, 500
VALIDATION_POOL, VALIDATION_PER_KIND, VALIDATION_SCENES = 128, 30, 150
TEST, VALIDATION = "test_in_distribution", "validation"
IMAGE_TO_TEXT, TEXT_TO_IMAGE = "rank/image_to_text", "rank/text_to_image"
NEGATIVES = "negatives/"
QUESTIONS = ("questions", "adversarial", "pairs")
LOSSES = ("loss/captions", "loss/answers")


class Part(NamedTuple):
    """One number per unit, the cluster of each, and what their sum is divided by; None for their number."""

    values: list[float]
    clusters: list[str]
    base: list[float] | None = None


@cache
def pools() -> list[list[dict[str, Any]]]:
    """The pools of the test, which share no scene that a training row shows."""
    return [retrieval_pool(POOL, seed, TEST) for seed in POOLS]


@cache
def negatives() -> list[dict[str, Any]]:
    """The hard negatives of the test, as many of each kind."""
    return hard_negative_items(PER_KIND, NEGATIVES_SEED, split=TEST)


@cache
def asked() -> dict[str, list[Item]]:
    """The world's own questions by column: with the prior, without it, and of minimal pairs."""
    found = (
        questions(TEST, NUM_SCENES),
        questions("test_adversarial", NUM_ADVERSARIAL),
        pair_questions(NUM_PAIRS),
    )
    return {name: [world_item(question, name) for question in own] for name, own in zip(QUESTIONS, found, strict=True)}


@cache
def answers() -> list[dict[str, Any]]:
    """Instruction rows of test scenes whose answers are all true."""
    return instruction_rows(NUM_ANSWERS, split=TEST, noise=0.0)


def embedding_parts(encoder: Encoder) -> dict[str, Part]:
    """Ranks of both directions in the test's pools, and by kind whether a caption beats its false one."""
    found = {IMAGE_TO_TEXT: Part([], []), TEXT_TO_IMAGE: Part([], [])}
    for rows in pools():
        names = [row["id"] for row in rows]
        for name, ranks in zip((IMAGE_TO_TEXT, TEXT_TO_IMAGE), both_ranks(encoder, rows), strict=True):
            found[name].values.extend(ranks)
            found[name].clusters.extend(names)
    return found | negatives_parts(encoder, negatives())


def both_ranks(encoder: Encoder, rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Of each picture the rank of its caption among all, and of each caption that of its picture; 1 is the best."""
    images = encoder.images([row["image"] for row in rows])
    texts = encoder.texts([row["caption"] for row in rows])
    found = cosines(images, texts)
    return ranks(found), ranks(found.T)


def ranks(similarities: Vectors) -> list[float]:
    """Of each row of a (N, N) matrix the rank of its diagonal, behind all that are as large: a tie is wrong."""
    others = (similarities >= similarities.diagonal()[:, None]).sum(axis=1) - 1
    return [float(1 + number) for number in others]


def negatives_parts(encoder: Encoder, rows: Sequence[Mapping[str, Any]]) -> dict[str, Part]:
    """By kind whether a picture's caption is nearer to it than its false caption; a tie is wrong."""
    return by_kind(NEGATIVES, rows, margins(encoder, rows))


def margins(encoder: Encoder, rows: Sequence[Mapping[str, Any]]) -> Vectors:
    """(N,) how much nearer a picture's caption is than its false one; exactly 0 of a tie."""
    images = encoder.images([row["image"] for row in rows])
    true = encoder.texts([row["caption"] for row in rows])
    false = encoder.texts([row["negatives"][0] for row in rows])
    return _own(images, true) - _own(images, false)


def by_kind(reading: str, rows: Sequence[Mapping[str, Any]], margins: Sequence[float] | Vectors) -> dict[str, Part]:
    """By kind of false caption whether the true one is ahead, under the name of what they were told apart by."""
    found: dict[str, Part] = {}
    for row, margin in zip(rows, margins, strict=True):
        part = found.setdefault(reading + row["kind"], Part([], []))
        part.values.append(float(margin > 0))
        part.clusters.append(row["id"])
    return found


def _own(first: Vectors, second: Vectors) -> Vectors:
    """(N,) float32 cosines of vectors in one place, rounded once (`similarity.cosines`)."""
    return (first.astype(np.float64) * second.astype(np.float64)).sum(axis=1).astype(np.float32)


def language_parts(model: Any, processor: Any) -> dict[str, Part]:
    """Right or wrong of the world's questions, of pairs both; and what long captions and answers cost to predict."""
    found: dict[str, Part] = {}
    for name, items in asked().items():
        right, clusters = _right(model, processor, items), [item.cluster for item in items]
        if name == "pairs":
            right = [first * second for first, second in zip(right[::2], right[1::2], strict=True)]
            clusters = clusters[::2]
        found[name] = Part(right, clusters)
    captioned = [row for rows in pools() for row in rows]
    for name, rows in zip(LOSSES, (captioned, answers()), strict=True):
        nats, tokens, ids = losses(model, processor, rows)
        found[name] = Part(nats, ids, tokens)
    return found


def validation_scores(encoder: Encoder, language: tuple[Any, Any] | None) -> dict[str, float]:
    """Shares of right answers on scenes that no test shows, and their mean "score", by which rates are chosen.

    Args:
        encoder: Of the arm.
        language: Model and processor, where the arm can be asked questions.
    """
    both = both_ranks(encoder, retrieval_pool(VALIDATION_POOL, split=VALIDATION))
    told = negatives_parts(encoder, hard_negative_items(VALIDATION_PER_KIND, split=VALIDATION)).values()
    found = {
        "recall": _mean([float(rank == 1) for ranks in both for rank in ranks]),
        "negatives": _mean([value for part in told for value in part.values]),
    }
    if language is not None:
        own = questions(VALIDATION, VALIDATION_SCENES, distribution="prior")
        found["questions"] = _mean(_right(*language, [world_item(each, VALIDATION) for each in own]))
    return {name: round(value, 4) for name, value in (found | {"score": _mean(list(found.values()))}).items()}


def _right(model: Any, processor: Any, items: Sequence[Item]) -> list[float]:
    given = answer(model, processor, items, method="logprob", batch_size=BATCH, identity="study")
    return [float(entry.right) for entry in given]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def packed(parts: Mapping[str, Part]) -> dict[str, dict[str, list[float]]]:
    """Values, clusters by number where several units share one, and what sums are divided by, as small JSON."""
    found = {}
    for name, part in parts.items():
        numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(part.clusters))}
        found[name] = {"values": [_short(value) for value in part.values]}
        if len(numbers) < len(part.clusters):
            found[name]["clusters"] = [numbers[cluster] for cluster in part.clusters]
        if part.base is not None:
            found[name]["base"] = [_short(value) for value in part.base]
    return found


def _short(value: float) -> float:
    return int(value) if value == int(value) else round(value, 3)
