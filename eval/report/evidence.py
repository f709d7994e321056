"""What a run is judged by, how small a difference it could have found, and whether it shows that no harm was done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mllm_align_eval.report.comparison import Roles, compare, finite
from mllm_align_eval.report.labels import difference_label, interval, is_rate, metric_label, number
from mllm_align_eval.report.leading import benchmarks_of, present, primary
from mllm_align_eval.report.metric_names import better

LEVEL = 0.05
ENOUGH = 300  # clusters from which an interval may exclude a loss; with 100 it errs four times as often as it says
# Beside what a run is judged by: abilities that training must leave as they were.
KEPT = ("world/in_distribution/acc",)


@dataclass(frozen=True)
class Evidence:
    """One metric of one comparison, as written.

    Attributes:
        comparison: Which arm against which.
        metric: Its key.
        label: What it is called.
        before: Its value in the arm that is compared with.
        after: Its value in the other.
        difference: The paired difference.
        bounds: Its 95 % interval.
        p: Holm's p over all metrics that the run is judged by; empty for one that it is not judged by.
        detects: The smallest difference that a test of this size finds four times in five.
        harm: Whether it is shown that no harm was done, and what is shown otherwise.
        questions: The number of units.
        clusters: What was resampled, counted.
    """

    comparison: str
    metric: str
    label: str
    before: str
    after: str
    difference: str
    bounds: str
    p: str
    detects: str
    harm: str
    questions: str
    clusters: str


def evidence(results: Mapping[str, Any]) -> list[Evidence]:
    """For each comparison the metrics that the run is judged by, and those that must stay as they were."""
    metrics = [metric for benchmark in benchmarks_of(results) for metric in primary(results, benchmark)]
    metrics += [found for metric in KEPT if (found := present(results, metric)) and found not in metrics]
    rows = []
    for name, cells in results.get("differences", {}).items():
        first, second = arms_of(name, results["arms"])
        for metric in metrics if first else ():
            cell = cells.get(metric)
            if not cell or not finite(cell.get("value")):
                continue
            one, other = (results["arms"][arm].get(metric) or {} for arm in (first, second))
            adjusted = results.get("primary", {}).get(name, {}).get(metric, {}).get("p_holm")
            rows.append(
                Evidence(
                    comparison=difference_label(name, results["arms"]),
                    metric=metric,
                    label=metric_label(metric),
                    before=number(metric, other.get("value")),
                    after=number(metric, one.get("value")),
                    difference=number(metric, cell["value"], signed=True),
                    bounds=interval(metric, cell, signed=True),
                    p=p_value(adjusted) if finite(adjusted) else "",
                    detects=number(metric, cell["detectable"]) if is_positive(cell.get("detectable")) else "",
                    harm=harm(metric, cell, results.get("margin", 0.01)),
                    questions=f"{one['n']:,}" if one.get("n") else "",
                    clusters=f"{one['clusters']:,}" if one.get("clusters") else "",
                )
            )
    return rows


def harm(metric: str, cell: Mapping[str, Any], margin: float) -> str:
    """What a paired difference shows of harm: two one-sided tests (Schuirmann 1987), then the interval.

    That nothing was found shows nothing: a small test finds nothing either.

    Args:
        metric: Its key, which says which way is better.
        cell: The difference.
        margin: The change that would not matter, of a rate.
    """
    way, points = better(metric), f"{margin * 100:g} point" + ("" if margin == 0.01 else "s")
    if not way or not is_rate(metric) or not finite(cell.get("low")) or not finite(cell.get("high")):
        return ""
    if finite(cell.get("equivalent_p")) and cell["equivalent_p"] < LEVEL:
        return f"shown: no change beyond {points}"
    if cell["low"] == cell["high"]:
        return f"not shown: nothing changed, in too few questions to exclude {points}"
    worst = cell["low"] if way > 0 else -cell["high"]
    if cell.get("excludes_zero"):
        return "shown: better" if cell["value"] * way > 0 else "harm is shown"
    # An interval of few clusters is too narrow to exclude a loss by.
    few = cell.get("clusters", ENOUGH) < ENOUGH
    if few or worst <= -margin:
        return f"not shown: a loss beyond {points} is possible"
    return f"shown: no loss beyond {points}"


def detects_text(results: Mapping[str, Any]) -> list[str]:
    """What the test of the aligned model against the base could find: "This set can detect >= 4.2 points"."""
    roles = Roles.of(results["arms"])
    found = []
    for benchmark in benchmarks_of(results):
        for metric in primary(results, benchmark):
            change = compare(results, roles.after, roles.before, metric)
            if change is None or not is_positive(change.detectable) or roles.after == roles.before:
                continue
            cell = results["arms"][roles.after][metric]
            sizes = [f"n = {cell['n']:,}"] if cell.get("n") else []
            sizes += [f"{cell['clusters']:,} clusters"] if cell.get("clusters") else []
            unit = " points" if is_rate(metric) else ""
            found.append(
                f"{metric_label(metric)}: this set can detect \N{GREATER-THAN OR EQUAL TO} "
                f"{number(metric, change.detectable)}{unit} ({', '.join([*sizes, '80 % power'])})."
            )
    return found


def is_positive(value: float | None) -> bool:
    """Whether this is a size; of two arms without any difference none can be worked out."""
    return value is not None and finite(value) and value > 0


def arms_of(name: str, arms: Mapping[str, Any]) -> tuple[str, str]:
    """The two arms of a comparison such as "aligned-base"; arms may have hyphens in their names."""
    for arm in arms:
        rest = name.removeprefix(f"{arm}-")
        if rest != name and rest in arms:
            return arm, rest
    return "", ""


def p_value(p: float) -> str:
    """A p-value as written; a bootstrap of 2,000 resamples cannot give one below 0.001."""
    return "\N{LESS-THAN OR EQUAL TO} 0.001" if p <= 0.001 else f"{p:.3f}"
