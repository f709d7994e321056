"""Two arms compared metric by metric: paired differences, their tests, and the few that a run is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mllm_align_eval.benchmark import Benchmark
from mllm_align_eval.items import Item
from mllm_align_eval.measures import GENERATED
from mllm_align_eval.metrics import Measure, Measures
from mllm_align_eval.statistics import (
    Bootstraps,
    Estimate,
    difference,
    equivalence,
    holm,
    mcnemar_exact,
    minimum_detectable_effect,
)

LEVEL = 0.05


def paired(first: Measures, second: Measures) -> list[str]:
    """The metrics that two arms have of the very same units.

    Where the answers decide which questions count (a judge's reply that cannot be read, a rule that skips what it
    cannot), two arms may have others, and their difference is none of pairs.
    """
    return [name for name in first if name in second and first[name].clusters == second[name].clusters]


def _p(estimate: Estimate, first: Measure, second: Measure) -> float:
    """The bootstrap's p, but no smaller than any test of the clusters' signs can give.

    Where only k clusters differ, chance alone has all of them differ one way with probability 2^(1-k); resamples of so
    few cannot show that. Of metrics of ranks (AUC) the two may have another number of levels: nothing is compared then
    unit by unit.
    """
    if first.metric.columns.shape != second.metric.columns.shape:
        return estimate.p
    _, index = np.unique(np.asarray(first.clusters), return_inverse=True)
    moved = np.asarray((first.metric.columns != second.metric.columns).sum(axis=1)) > 0
    return max(estimate.p, min(1.0, 2.0 ** (1 - len(set(index[moved])))))


def _is_right_or_wrong(measure: Measure) -> bool:
    """Whether every unit is one question with value 0 or 1."""
    return measure.metric.proportion and bool(np.isin(measure.metric.columns[:, 0], (0, 1)).all())


def differences(first: Measures, second: Measures, bootstrap: Bootstraps, margin: float) -> dict[str, dict[str, Any]]:
    """Every paired difference with its interval, tests, and what a test of this size would find."""
    found = {}
    for name in paired(first, second):
        a, b = first[name], second[name]
        estimate = bootstrap.of(a.clusters).estimate(difference(a.metric, b.metric))
        p = _p(estimate, a, b)
        found[name] = estimate.as_dict() | {
            "clusters": estimate.clusters,
            "excludes_zero": estimate.excludes_zero and p < LEVEL,
            "detectable": minimum_detectable_effect(estimate.error),
            "p": p,
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
    both = paired(first, second)
    names = [name for name in wanted for name in (name, name + GENERATED) if name in both]
    names = [
        name for name in names if name == name.removesuffix(GENERATED) or name.removesuffix(GENERATED) not in names
    ]
    found = {
        name: bootstrap.of(first[name].clusters).estimate(difference(first[name].metric, second[name].metric))
        for name in names
    }
    plain = [_p(estimate, first[name], second[name]) for name, estimate in found.items()]
    return {name: {"p": p, "p_holm": adjusted} for name, p, adjusted in zip(found, plain, holm(plain), strict=True)}


def mcnemar_tests(first: Measures, second: Measures) -> dict[str, dict[str, float | int]]:
    """The exact test of accuracies, where each question is a cluster of its own."""
    found = {}
    for name in (name for name in paired(first, second) if name.removesuffix(GENERATED).endswith("acc")):
        a, b = first[name], second[name]
        if len(set(a.clusters)) == len(a.clusters) and all(map(_is_right_or_wrong, (a, b))):
            only_first, only_second, p = mcnemar_exact(a.metric.columns[:, 0] > 0, b.metric.columns[:, 0] > 0)
            found[name] = {"only_first": only_first, "only_second": only_second, "p": p}
    return found
