"""Which of a run's many metrics stand at the head of the report, benchmark by benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mllm_align_eval.report.comparison import finite
from mllm_align_eval.report.labels import KEY_METRICS
from mllm_align_eval.report.metric_names import GENERATED, parse_key

# What belongs beside the metric that a benchmark is judged by: what it must not be read without.
BESIDE = {
    "amber": (
        "amber/discriminative/f1",
        "amber/generative/chair_exact",
        "amber/generative/hal_exact",
        "amber/generative/cover_exact",
        "amber/generative/words",
        "amber/generative/mentions",
    ),
    "chair": ("chair/chair_s", "chair/recall", "chair/words", "chair/mentions"),
    "mmhal": ("mmhal/hallucination_rate", "mmhal/words"),
    "objhal": ("objhal/response_hall", "objhal/recall", "objhal/words", "objhal/mentions"),
    "pope": ("pope/popular/acc", "pope/random/acc", "pope/f1_mean3"),
    # The sum that is published, and the same without the image: how much of it is length and habit.
    "sugarcrepe_captions": ("sugarcrepe_captions/acc_mean7", "sugarcrepe_captions/acc_mean7_no_image"),
    **{
        name: (f"{name}/itt_acc_mean5", f"{name}/itt_acc_mean5_no_image", f"{name}/tot_acc_mean5")
        for name in ("sugarcrepe_pp", "world_sugarcrepe_pp")
    },
    **{
        name: (f"{name}/image_to_text/r1", f"{name}/text_to_image/r1")
        for name in ("coco_retrieval", "flickr30k", "world_retrieval")
    },
    "world_negatives": (
        "world_negatives/itt_acc_mean8",
        *(f"world_negatives/{way}/acc" for way in ("swap", "replace", "add")),
    ),
    "world_zero_shot": tuple(f"world_zero_shot/{task}/top1_acc" for task in ("shape", "colour", "shape_and_colour")),
    "zero_shot": ("zero_shot/top5_acc", "zero_shot/macro_acc"),
}


def benchmarks_of(results: Mapping[str, Any]) -> list[str]:
    """The benchmarks of a run, in the order in which they were asked."""
    named = results.get("benchmarks") or {}
    found = (parse_key(metric).benchmark for cells in results["arms"].values() for metric in cells)
    return list(dict.fromkeys([*named, *found]))


def present(results: Mapping[str, Any], metric: str) -> str | None:
    """The metric itself where an arm has a number for it, else the one of generated answers, else None."""
    for name in (metric, metric.removesuffix(GENERATED) + GENERATED):
        if any(finite((cells.get(name) or {}).get("value")) for cells in results["arms"].values()):
            return name
    return None


def primary(results: Mapping[str, Any], benchmark: str) -> list[str]:
    """The metrics that a benchmark is judged by, as far as they were measured.

    Of a run that does not say, or has not all its splits: those that were tested, or else the first accuracy there
    is, of the same scoring where that was measured.
    """
    named = (results.get("benchmarks") or {}).get(benchmark, {}).get("primary") or []
    tested = [m for cells in results.get("primary", {}).values() for m in cells if parse_key(m).benchmark == benchmark]
    found = _present(results, [*named, *tested])
    if found:
        return found
    metrics = dict.fromkeys(metric for cells in results["arms"].values() for metric in cells)
    usable = [m for m in metrics if (key := parse_key(m)).benchmark == benchmark and not key.picture and not key.kind]
    accuracies = [metric for metric in usable if parse_key(metric).measure in ("acc", "itt_acc")]
    scorings = {parse_key(metric).scoring for metric in named}
    # A stable sort: false comes first.
    accuracies.sort(key=lambda metric: (parse_key(metric).scoring not in scorings, bool(parse_key(metric).scoring)))
    return (accuracies or _present(results, BESIDE.get(benchmark, ())))[:1]


def leading(results: Mapping[str, Any]) -> list[str]:
    """The metrics that are shown first: those that a run is judged by, what belongs beside them, the visual gap."""
    found: list[str] = []
    for benchmark in benchmarks_of(results):
        if benchmark == "world":
            found += _present(results, KEY_METRICS)
            continue
        judged = primary(results, benchmark)
        found += _present(results, [*judged, *BESIDE.get(benchmark, ()), *visual_gaps(results, benchmark, judged)])
    return found


def visual_gaps(results: Mapping[str, Any], benchmark: str, judged: Sequence[str]) -> list[str]:
    """The visual gap of the split that is judged, or where it has none all gaps of the benchmark."""
    metrics = dict.fromkeys(metric for cells in results["arms"].values() for metric in cells)
    gaps = [m for m in metrics if (key := parse_key(m)).benchmark == benchmark and key.measure == "visual_gap"]
    gaps = [metric for metric in gaps if not parse_key(metric).generated] or gaps
    splits = {parse_key(metric).split for metric in judged}
    return [metric for metric in gaps if parse_key(metric).split in {"", *splits}] or gaps


def _present(results: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    """Those that were measured, each once, by log-probability where they were measured in both ways."""
    return list(dict.fromkeys(name for metric in metrics if (name := present(results, metric)) is not None))
