"""Answers of all arms to the results that the report shows: values, paired differences, baselines."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from mllm_align_eval.baselines import baselines
from mllm_align_eval.benchmark import STRICT, Benchmark
from mllm_align_eval.calibration import calibration_by_chance, confidences, is_calibrated, reliability
from mllm_align_eval.comparing import differences, mcnemar_tests, primary_metrics, primary_tests
from mllm_align_eval.detection import criterion_shift_metric
from mllm_align_eval.environment import machine, versions
from mllm_align_eval.items import Answer, ImageArm, Item, Method, check_items
from mllm_align_eval.measures import GENERATED, measures, splits_of
from mllm_align_eval.metrics import Measures
from mllm_align_eval.published import length_matched, published_measures
from mllm_align_eval.statistics import Bootstraps, Estimate
from mllm_align_eval.written import Shares, shares_of

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
            arm: {name: _cell(bootstrap.of(m.clusters).estimate(m.metric)) for name, m in parts.items()}
            for arm, parts in found.items()
        },
        "differences": {
            f"{a}-{b}": differences(found[a], found[b], bootstrap, margin)
            | differences(*length_matched(items, answers[a], answers[b], named, parser), bootstrap, margin)
            for a, b in pairs
        },
        "primary": {f"{a}-{b}": primary_tests(found[a], found[b], bootstrap, judged) for a, b in pairs},
        "mcnemar": {f"{a}-{b}": mcnemar_tests(found[a], found[b]) for a, b in pairs},
        "criterion_shift": {f"{a}-{b}": _criterion_shifts(found[a], found[b], bootstrap) for a, b in pairs},
        "calibration": {arm: _reliabilities(items, given) for arm, given in answers.items()},
        "baselines": baselines(items, named),
        **_answer_counts(answers),
        "reading": {arm: _reading(items, given) for arm, given in answers.items()},
        "benchmarks": _benchmarks(items, named, judged, parser),
        "data": describe(items),
        "intervals": {"method": interval, "confidence": confidence, "resamples": num_resamples, "unit": _unit(items)},
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


def _cell(estimate: Estimate) -> dict[str, float | int]:
    return estimate.as_dict() | {"clusters": estimate.clusters}


def _unit(items: Sequence[Item]) -> str:
    """What is resampled, in a word; a benchmark's own description says what its clusters are."""
    return "scene" if all(item.benchmark == "world" for item in items) else "image"


def _benchmarks(
    items: Sequence[Item], named: Mapping[str, Benchmark], judged: Sequence[str], parser: str
) -> dict[str, dict[str, Any]]:
    """Per benchmark of the run its title, the metrics it is judged by, and whose rules read generated answers."""
    found = {}
    for name in dict.fromkeys(item.benchmark for item in items):
        known = named.get(name)
        found[name] = {
            "title": known.title if known else name,
            "primary": [metric for metric in judged if metric.split("/")[0] == name],
            "parser": parser if known and parser in known.parsers else STRICT,
        }
        if known:
            found[name]["max_new_tokens"] = known.max_new_tokens
    return found


def _criterion_shifts(first: Measures, second: Measures, bootstrap: Bootstraps) -> dict[str, dict[str, float | int]]:
    """By split, `<benchmark>/<split>` (and `_generated`), what moving the criterion alone would have gained."""
    found = {}
    for name in (name for name in first if name in second and name.removesuffix(GENERATED).endswith("/dprime")):
        shift = criterion_shift_metric(first[name].metric, second[name].metric)
        estimate = bootstrap.of(first[name].clusters).estimate(shift)
        found[name.replace("/dprime", "")] = estimate.as_dict() | {"excludes_zero": estimate.excludes_zero}
    return found


def _reliabilities(items: Sequence[Item], answers: Answers) -> dict[str, dict[str, Any]]:
    """By split the bins of its reliability diagram, and the calibration error that chance alone would give."""
    said = {entry.item: entry for entry in answers.get(("logprob", "right"), ())}
    found = {}
    for (benchmark, split), members in splits_of(items, said).items():
        given = [said[item.id] for item in members]
        if all(map(is_calibrated, members, given)):
            sure, right = confidences(given), [entry.right for entry in given]
            found[f"{benchmark}/{split}"] = {
                "bins": [part._asdict() for part in reliability(sure, right)],
                "by_chance": calibration_by_chance(sure),
            }
    return found


def _reading(items: Sequence[Item], answers: Answers) -> dict[str, Shares]:
    """By split what became of the answers that were generated under the right image, as shares of them."""
    said = {entry.item: entry for entry in answers.get(("generate", "right"), ())}
    found = {}
    for (benchmark, split), members in splits_of(items, said).items():
        found[f"{benchmark}/{split}"] = shares_of(members, [said[item.id] for item in members])
    return found


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
