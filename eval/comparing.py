"""Two arms compared metric by metric: paired differences, their tests, and the few that a run is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mllm_align_eval.benchmark import Benchmark
from mllm_align_eval.items import Item
from mllm_align_eval.measures import GENERATED
from mllm_align_eval.metrics import Measures
from mllm_align_eval.statistics import (
    Bootstraps,
    difference,
    equivalence,
    holm,
    mcnemar_exact,
    minimum_detectable_effect,
)


def differences(first: Measures, second: Measures, bootstrap: Bootstraps, margin: float) -> dict[str, dict[str, Any]]:
    """Every paired difference with its interval, tests, and what a test of this size would find."""
    found = {}
    for name in (name for name in first if name in second):
        a, b = first[name], second[name]
        estimate = bootstrap.of(a.clusters).estimate(difference(a.metric, b.metric))
        found[name] = estimate.as_dict() | {
            "excludes_zero": estimate.excludes_zero,
            "detectable": minimum_detectable_effect(estimate.error),
            "p": estimate.p,
            "equivalent_p": equivalence(estimate, margin),
        }
    return found


def primary_metrics(items: Sequence[Item], benchmarks: Mapping[str, Benchmark]) -> list[str]:
    """The one metric that each benchmark of the run is judged by."""
    there = dict.fromkeys(item.benchmark for item in items)
    world = ["world/adversarial/acc", "world/pair_acc"] if "world" in there else []
    return world + [benchmarks[name].primary for name in there if name in benchmarks and benchmarks[name].primary]


def primary_tests(
    first: Measures, second: Measures, bootstrap: Bootstraps, wanted: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Holm-adjusted p-values of the primary metrics: the only ones of which a run may say that they differ."""
    names = [name for name in wanted for name in (name, name + GENERATED) if name in first and name in second]
    names = [
        name for name in names if name == name.removesuffix(GENERATED) or name.removesuffix(GENERATED) not in names
    ]
    found = {
        name: bootstrap.of(first[name].clusters).estimate(difference(first[name].metric, second[name].metric))
        for name in names
    }
    adjusted = holm([estimate.p for estimate in found.values()])
    return {name: {"p": found[name].p, "p_holm": p} for name, p in zip(found, adjusted, strict=True)}


def mcnemar_tests(first: Measures, second: Measures) -> dict[str, dict[str, float | int]]:
    """The exact test of accuracies, where each question is a cluster of its own."""
    found = {}
    for name in (name for name in first if name in second and name.removesuffix("_generated").endswith("acc")):
        a, b = first[name], second[name]
        if len(set(a.clusters)) == len(a.clusters):
            only_first, only_second, p = mcnemar_exact(a.metric.columns[:, 0] > 0, b.metric.columns[:, 0] > 0)
            found[name] = {"only_first": only_first, "only_second": only_second, "p": p}
    return found
