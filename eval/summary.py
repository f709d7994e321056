"""Answers of all arms to the results that the report shows: values, paired differences, baselines."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from mllm_align_eval.baselines import baselines
from mllm_align_eval.benchmark import STRICT, Benchmark
from mllm_align_eval.comparing import differences, mcnemar_tests, primary_metrics, primary_tests
from mllm_align_eval.environment import machine, versions
from mllm_align_eval.items import Answer, ImageArm, Item, Method, check_items
from mllm_align_eval.measures import measures
from mllm_align_eval.published import published_measures
from mllm_align_eval.statistics import Bootstraps

Answers = Mapping[tuple[Method, ImageArm], Sequence[Answer]]
COMPARISONS = (("aligned", "base"), ("control", "base"), ("aligned", "control"), ("base", "base_16bit"))


def summarise(
    items: Sequence[Item],
    answers: Mapping[str, Answers],
    *,
    comparisons: Sequence[tuple[str, str]] | None = None,
    seconds: float | None = None,
    seed: int = 0,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    interval: str = "bca",
    benchmarks: Mapping[str, Benchmark] | None = None,
    parser: str = STRICT,
    margin: float = 0.01,
    **more: Any,
) -> dict[str, Any]:
    """The results of a run, in the form that `mllm_align_eval.report` describes.

    Every value and every difference has a cluster-bootstrap interval; all are of the same resampled scenes.
    `mcnemar` holds the exact test, for metrics of which every question is a cluster of its own.

    Args:
        items: All questions.
        answers: `answers[arm][method, image]`, as `runner.answer_arms` returns them.
        comparisons: Pairs of arms to subtract; by default aligned - base, control - base, aligned - control and
            base - base_16bit, as far as these arms are there.
        seconds: Of the whole run.
        seed: Of the bootstrap.
        num_resamples: Of the bootstrap.
        confidence: Of the intervals.
        interval: "bca" or "percentile".
        benchmarks: Those whose published metrics are wanted beside the general ones.
        parser: By whose rules generated answers were read.
        margin: Of the test that a difference of rates is no more than that either way.
        **more: Further top-level entries (`stages`, `recipe`, ...).

    Raises:
        ValueError: If arms were not asked the same questions.
    """
    check_items(items)
    _check_same_questions(answers)
    named = benchmarks or {}
    found = {
        arm: measures(items, given) | published_measures(items, given, named, parser) for arm, given in answers.items()
    }
    judged = primary_metrics(items, named)
    bootstrap = Bootstraps(num_resamples, confidence, interval, seed)
    wanted = COMPARISONS if comparisons is None else tuple(comparisons)
    pairs = [(first, second) for first, second in wanted if first in found and second in found]
    return {
        "arms": {
            arm: {name: bootstrap.of(m.clusters).estimate(m.metric).as_dict() for name, m in parts.items()}
            for arm, parts in found.items()
        },
        "differences": {f"{a}-{b}": differences(found[a], found[b], bootstrap, margin) for a, b in pairs},
        "primary": {f"{a}-{b}": primary_tests(found[a], found[b], bootstrap, judged) for a, b in pairs},
        "mcnemar": {f"{a}-{b}": mcnemar_tests(found[a], found[b]) for a, b in pairs},
        "baselines": baselines(items),
        **_answer_counts(answers),
        "data": describe(items),
        "intervals": {"method": interval, "confidence": confidence, "resamples": num_resamples, "unit": "scene"},
        "margin": margin,
        "parser": parser,
        "seed": seed,
        "seconds": seconds,
        "machine": machine(),
        "versions": versions(),
        **more,
    }


def describe(items: Sequence[Item]) -> dict[str, Any]:
    """Per benchmark and split the number of questions and scenes, and a hash of what is asked."""
    splits: dict[str, list[Item]] = {}
    for item in items:
        splits.setdefault(f"{item.benchmark}/{item.split}", []).append(item)
    return {
        name: {
            "questions": len(members),
            "clusters": len({item.cluster for item in members}),
            "sha256": _digest(members)[:16],
        }
        for name, members in splits.items()
    }


def _digest(items: Sequence[Item]) -> str:
    lines = ["\t".join((i.id, i.cluster, i.prompt, i.answer, *i.choices)) for i in items]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _answer_counts(answers: Mapping[str, Answers]) -> dict[str, dict[str, float | int]]:
    """Shares of generated answers under the right image by what went wrong, and the number of model errors."""
    found: dict[str, dict[str, float | int]] = {"unreadable": {}, "abstained": {}, "truncated": {}, "errors": {}}
    for arm, given in answers.items():
        found["errors"][arm] = sum(entry.state == "error" for entries in given.values() for entry in entries)
        texts = given.get(("generate", "right"))
        if texts:
            found["unreadable"][arm] = sum(entry.state == "invalid" for entry in texts) / len(texts)
            found["abstained"][arm] = sum(entry.state == "abstained" for entry in texts) / len(texts)
            found["truncated"][arm] = sum(entry.truncated for entry in texts) / len(texts)
    return found


def _check_same_questions(answers: Mapping[str, Answers]) -> None:
    arms = list(answers)
    if not arms:
        raise ValueError("there are no arms to summarise")
    for arm in arms[1:]:
        for key in answers[arms[0]].keys() & answers[arm].keys():
            asked = [sorted(entry.item for entry in answers[name][key]) for name in (arms[0], arm)]
            if asked[0] != asked[1]:
                raise ValueError(
                    f"arms {arms[0]!r} and {arm!r} answered different questions ({key[0]}, {key[1]} image): "
                    "a paired comparison needs the same ones"
                )
