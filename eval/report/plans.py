"""Which figures a run has: for the world those of its own tests, for every other benchmark the same three."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mllm_align_eval.report.comparison import Roles
from mllm_align_eval.report.evidence import arms_of
from mllm_align_eval.report.labels import IMAGE_METRICS, KINDS, is_rate
from mllm_align_eval.report.leading import benchmarks_of, leading, primary
from mllm_align_eval.report.metric_names import (
    GENERATED,
    MEASURES,
    Key,
    benchmark_label,
    better,
    generic_label,
    parse_key,
)

POLLS = {
    "world/pope_random/acc": "Random",
    "world/pope_popular/acc": "Popular",
    "world/pope_adversarial/acc": "Adversarial",
}
# Of one metric the same under the other pictures, and how a row of them is labelled.
SHOWN = {"": "Right image", "other": "Another image", "blank": "Blank image", "no": "No image"}
MAX_ROWS = 24
_KIND = re.compile(r"world/adversarial/(.+)_acc")


@dataclass(frozen=True)
class Plan:
    """A figure before its geometry.

    Attributes:
        id: Of the element.
        title: Its heading.
        caption: What is to be seen.
        metrics: Its rows by metric; a label of "" is the metric's own.
        differences: The comparisons that are drawn in place of values, if any.
    """

    id: str
    title: str
    caption: str
    metrics: Mapping[str, str]
    differences: tuple[str, ...] = ()


def plans(results: Mapping[str, Any]) -> list[Plan]:
    """The figures of a run, some of which may have no number."""
    names = benchmarks_of(results)
    found = [
        Plan(
            "measures",
            "Main measures",
            "Points are per cent, bars 95 % intervals."
            + (" Lower is better where it says so." if any(better(m) < 0 for m in leading(results)) else ""),
            {metric: _with_way(metric) for metric in leading(results) if is_rate(metric)},
        )
    ]
    for name in names:
        own = _world_plans(results) if name == "world" else _general_plans(results, name)
        if len(names) > 1 or name != "world":
            head = benchmark_label(name)
            own = [replace(plan, title=f"{head}: {plan.title[0].lower()}{plan.title[1:]}") for plan in own]
        found += own
    return found


def _world_plans(results: Mapping[str, Any]) -> list[Plan]:
    kinds = _world_kinds(results)
    return [
        Plan(
            "kinds",
            "By kind of question",
            "Adversarial accuracy: scenes in which colour, size, side and company all break the prior.",
            kinds,
        ),
        _differences(results, "kinds-differences", "Difference by kind of question", kinds),
        Plan(
            "images",
            "By the image shown",
            "The same adversarial questions with the right image, another scene's, a grey one and none. A model that "
            "looks falls far when the image is taken away; accuracy that stays comes from text alone.",
            dict(zip(IMAGE_METRICS, ("Right image", "Another scene's image", "Blank image", "No image"), strict=True)),
        ),
        Plan(
            "polling",
            "Existence polling",
            "Is there a ...? Absent objects drawn at random, by popularity, and as what the prior expects.",
            POLLS,
        ),
    ]


def _world_kinds(results: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for cells in results["arms"].values():
        for metric in cells:
            match = _KIND.fullmatch(metric)
            if match and metric not in IMAGE_METRICS:
                found[metric] = match[1].replace("_", " ").capitalize()
    known = {f"world/adversarial/{kind}_acc": i for i, kind in enumerate(KINDS)}
    return dict(sorted(found.items(), key=lambda item: known.get(item[0], len(known))))


def _general_plans(results: Mapping[str, Any], name: str) -> list[Plan]:
    rows, left_out = _categories(results, name)
    more = f" {left_out} more are in the table of all numbers." if left_out else ""
    found = []
    if len(rows) > 1:
        caption = "Splits, and kinds of question within them. Per cent, with 95 % intervals." + more
        found.append(Plan(f"{name}-categories", "By split and kind of question", caption, rows))
    if rows:
        title = "Difference by split and kind" if len(rows) > 1 else "Difference"
        found.append(_differences(results, f"{name}-differences", title, rows, more))
    shown = _pictures(results, name)
    if len(shown) > 1:
        caption = (
            f"{generic_label(next(iter(shown)))}. The same questions under each image. A model that looks does far "
            "worse without the right one; what stays comes from text alone."
        )
        found.append(Plan(f"{name}-images", "By the image shown", caption, shown))
    return found


def _differences(
    results: Mapping[str, Any], name: str, title: str, metrics: Mapping[str, str], more: str = ""
) -> Plan:
    """The forest plot of the differences from the base."""
    before = Roles.of(results["arms"]).before
    drawn = [name for name in results.get("differences", {}) if arms_of(name, results["arms"])[1] == before]
    drawn = [name for name in drawn if arms_of(name, results["arms"])[0] != "base_16bit"]
    caption = "Paired differences from the base in points, with 95 % intervals; the line is no change." + more
    return Plan(name, title, caption, metrics if drawn else {}, tuple(drawn))


def _categories(results: Mapping[str, Any], benchmark: str) -> tuple[dict[str, str], int]:
    """The accuracies (or what stands for them) of a benchmark's splits and kinds, and how many were left out.

    First what the benchmark is judged by.
    """
    metrics = dict.fromkeys(metric for cells in results["arms"].values() for metric in cells)
    judged = primary(results, benchmark)
    measures = {"acc", *(parse_key(metric).measure for metric in judged)} - {"visual_gap"}
    found = {metric: "" for metric in judged if is_rate(metric)}
    for metric in metrics:
        key = parse_key(metric)
        wanted = key.benchmark == benchmark and not key.picture and not key.scoring and key.measure in measures
        # By log-probability where both ways are there.
        twice = key.generated and metric.removesuffix(GENERATED) in metrics
        if wanted and not twice and (key.split or key.kind) and is_rate(metric) and better(metric):
            found[metric] = _category(key, measures)
    for metric in judged:
        if found.get(metric) == "":
            found[metric] = _category(parse_key(metric), set())
    return dict(list(found.items())[:MAX_ROWS]), max(0, len(found) - MAX_ROWS)


def _category(key: Key, measures: set[str]) -> str:
    """What a row is called in a figure that names the benchmark."""
    measure = MEASURES[key.measure]
    label = ", ".join(part.replace("_", " ") for part in (*key.split.split("/"), key.kind) if part)
    if not label or (key.measure != "acc" and len(measures) != 1):
        label += (": " if label else "") + measure.label + (" (lower is better)" if measure.better < 0 else "")
    return f"{label[0].upper()}{label[1:]}"


def _pictures(results: Mapping[str, Any], benchmark: str) -> dict[str, str]:
    """What the benchmark is judged by under each picture; an accuracy has two names there, of which one is taken."""
    metrics = dict.fromkeys(metric for cells in results["arms"].values() for metric in cells)
    for metric in primary(results, benchmark)[:1]:
        key = parse_key(metric)
        alike = {}
        for other in metrics:
            found = parse_key(other)
            same = (found.benchmark, found.split, found.kind, found.measure, found.scoring, found.generated)
            if same == (key.benchmark, key.split, key.kind, key.measure, key.scoring, key.generated):
                alike.setdefault(found.picture, other)
        if is_rate(metric):
            return {alike[picture]: label for picture, label in SHOWN.items() if picture in alike}
    return {}


def _with_way(metric: str) -> str:
    """The metric's own label, or with a word on the way that is better where that is down."""
    return f"{generic_label(metric)} (lower is better)" if better(metric) < 0 and generic_label(metric) else ""
