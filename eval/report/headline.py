"""The sentences at the head of the report, computed from the numbers: what changed, what it cost, against what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mllm_align_eval.report.comparison import Change, Roles, compare, finite
from mllm_align_eval.report.evidence import arms_of
from mllm_align_eval.report.labels import (
    arm_inline,
    arm_label,
    inline_label,
    interval,
    is_rate,
    metric_label,
    number,
    with_unit,
)
from mllm_align_eval.report.leading import benchmarks_of, primary
from mllm_align_eval.report.metric_names import better
from mllm_align_eval.report.source import source_text

PRIMARY = ("world/adversarial/acc", "world/pair_acc")
IN_DISTRIBUTION = "world/in_distribution/acc"
LEVEL = 0.05


@dataclass(frozen=True)
class Headline:
    """Sentences that belong together; none of them may be shown without the others.

    Attributes:
        effect: Whether the aligned model is better than the base, and whether the intervals overlap.
        cost: On the world, what happened on scenes like those of training.
        control: Whether the plain next-token control on the same pairs does as well.
        others: Beside the world, what became of the metrics that the run's other benchmarks are judged by.
        source: Whether these are scores of probabilities or of written answers.
    """

    effect: str
    cost: str
    control: str
    others: str = ""
    source: str = ""

    def __str__(self) -> str:
        """All that there is to say, as one paragraph."""
        parts = (self.effect, self.cost, self.control, self.others, self.source)
        return " ".join(part for part in parts if part)


def headline(results: Mapping[str, Any]) -> Headline:
    """States what the numbers of a run allow to be stated, and no more.

    Args:
        results: As described in `mllm_align_eval.report`.

    Returns:
        The sentences. On the world the measures are adversarial and pair accuracy, on other benchmarks the metrics
        that they are judged by.
    """
    roles, source = Roles.of(results["arms"]), source_text(results)
    if roles.after == roles.before:
        return Headline(_alone(results, roles.before), "", "", source=source)
    changes = _changes(results, roles.after, roles.before)
    if not changes:
        return Headline(_judged(results, roles), "", _beside_control(results, roles), source=source)
    against = _changes(results, roles.after, roles.control) if roles.control else []
    cost = compare(results, roles.after, roles.before, IN_DISTRIBUTION)
    others = _judged(results, roles) if len(benchmarks_of(results)) > 1 and results.get("primary") else ""
    return Headline(_effect(changes), _cost(cost), _control(against, changes), others, source)


def _changes(results: Mapping[str, Any], first: str, second: str) -> list[Change]:
    found = [compare(results, first, second, metric) for metric in PRIMARY]
    return [change for change in found if change]


def _alone(results: Mapping[str, Any], arm: str) -> str:
    """What a single model has, and what answers without the picture get."""
    parts = []
    for metric in (metric for benchmark in benchmarks_of(results) for metric in primary(results, benchmark)):
        cell = results["arms"][arm].get(metric) or {}
        bounds = interval(metric, cell)
        text = f"{inline_label(metric)} {with_unit(metric, cell.get('value'))}" + (f" ({bounds})" if bounds else "")
        blind = [(values[metric], name) for name, values in results.get("baselines", {}).items() if metric in values]
        if blind and better(metric) > 0 and finite(max(blind)[0]):
            value, name = max(blind)
            text += f"; without the picture, \N{LEFT DOUBLE QUOTATION MARK}{name.replace('_', ' ')}"
            text += f"\N{RIGHT DOUBLE QUOTATION MARK} gets {with_unit(metric, value)}"
        parts.append(text)
    found = f" {arm_label(arm)} alone: {'. '.join(parts)}." if parts else ""
    return f"This run does not compare an aligned model with its base.{found}"


def _judged(results: Mapping[str, Any], roles: Roles) -> str:
    """Of benchmarks other than the world: what became of the metrics that they are judged by, tested together."""
    sentences, tests = [], 0
    for name, cells in results.get("primary", {}).items():
        first, second = arms_of(name, results["arms"])
        tests = max(tests, len(cells))
        changes = [
            (change, cell["p_holm"])
            for metric, cell in cells.items()
            if first and metric not in PRIMARY and (change := compare(results, first, second, metric)) is not None
        ]
        if changes:
            moved = "; ".join(_moved(change, p) for change, p in changes)
            sentences.append(f"{arm_label(first)} against {arm_inline(second)}: {moved}.")
    if not sentences:
        return "This run has no metric by which an aligned model and its base are judged."
    if tests > 1:
        sentences.append(f"Clear is what stays so with Holm's correction over the {tests} metrics that are tested.")
    return " ".join(sentences)


def _moved(change: Change, p: float) -> str:
    """One metric: from where to where, by how much, and what may be said of it."""
    metric = change.metric
    way = better(metric) * (1 if change.difference > 0 else -1)
    # A p-value that is not finite is one of nothing to resample: it shows nothing.
    is_clear = finite(p) and p < LEVEL
    verdict = {1: "a clear gain", -1: "a clear loss", 0: "a clear change"}[way] if is_clear else "no clear change"
    bounds = interval(metric, {"low": change.low, "high": change.high}, signed=True)
    points = number(metric, change.difference, signed=True) + (" points" if is_rate(metric) else "")
    return (
        f"{inline_label(metric)} from {with_unit(metric, change.second)} to {with_unit(metric, change.first)} "
        f"({points}{f', {bounds}' if bounds else ''}), {verdict}"
    )


def _beside_control(results: Mapping[str, Any], roles: Roles) -> str:
    """The aligned model against a control, where there is one, on what the benchmarks are judged by."""
    if roles.control is None or roles.control in (roles.after, roles.before):
        return ""
    metrics = [metric for benchmark in benchmarks_of(results) for metric in primary(results, benchmark)]
    changes = [found for metric in metrics if (found := compare(results, roles.after, roles.control, metric))]
    words = {1: "above", 0: "level with", -1: "below"}
    parts = [f"{words[c.clear]} it on {inline_label(c.metric)} ({with_unit(c.metric, c.second)})" for c in changes]
    who = f"{arm_label(roles.after)} against the plain next-token control on the same rows"
    return f"{who}: {_and(parts)}." if parts else ""


def _effect(changes: Sequence[Change]) -> str:
    moved = _and([f"{_name(c)} from {number(c.metric, c.second)} % to {number(c.metric, c.first)} %" for c in changes])
    signs = {change.clear for change in changes}
    both = "both " if len(changes) > 1 else ""
    if signs == {0}:
        reading = "both intervals of the differences include" if both else "the interval of the difference includes"
        return f"Alignment shows no clear effect: {moved}, and {reading} zero."
    if len(signs) == 1:
        verb = "raises" if signs == {1} else "lowers"
        if all(change.disjoint for change in changes):
            return f"Alignment {verb} {moved}; the 95 % intervals do not overlap."
        return (
            f"Alignment {verb} {moved}; the paired difference excludes zero, "
            f"but the 95 % intervals of {_and([_name(c) for c in changes if not c.disjoint])} overlap."
        )
    words = {1: "higher", 0: "no clear change", -1: "lower"}
    parts = [
        f"{_name(c)} from {number(c.metric, c.second)} % to {number(c.metric, c.first)} % ({words[c.clear]}"
        + (", intervals do not overlap)" if c.clear and c.disjoint else ")")
        for c in changes
    ]
    return f"Alignment has a mixed effect: {_and(parts)}."


def _cost(change: Change | None) -> str:
    if change is None:
        return "What it costs in distribution was not measured."
    points = number(change.metric, abs(change.difference))
    bounds = interval(change.metric, {"low": change.low, "high": change.high}, signed=True)
    within = f", 95 % interval {bounds}" if bounds else ""
    if change.clear < 0:
        return f"In distribution it costs {points} points ({_span(change)}{within})."
    if change.clear > 0:
        return f"In distribution it gains {points} points ({_span(change)}{within})."
    return f"In distribution no change is measurable ({_span(change)}{within})."


def _control(against: Sequence[Change], changes: Sequence[Change]) -> str:
    if not against:
        return "No next-token control was run on the same pairs, so the pairs and the objective cannot be told apart."
    scores = _and([f"{_name(c)} {number(c.metric, c.second)} %" for c in against])
    plain = "The plain next-token control on the same pairs"
    signs = {change.clear for change in against}
    helped = any(change.clear > 0 for change in changes)
    if signs == {1}:
        return (
            f"{plain} does less well ({scores}): here the preference objective adds something that the pairs do not."
        )
    if 1 not in signs and -1 in signs:
        where = (
            "" if signs == {-1} else f" on {_and([_name(c) for c in against if c.clear < 0])}, and no worse elsewhere"
        )
        reading = ": the pairs alone account for the gain, not the preference objective" if helped else ""
        return f"{plain} is better{where} ({scores}){reading}."
    if signs == {0}:
        reading = (
            ": no advantage of the preference objective over the pairs themselves is shown by these" if helped else ""
        )
        return f"{plain} is as good within the intervals ({scores}){reading}."
    words = {1: "behind", 0: "level", -1: "ahead"}
    parts = [f"{words[c.clear]} on {_name(c)} ({number(c.metric, c.second)} %)" for c in against]
    return f"{plain} is {_and(parts)}: no general advantage of the preference objective is shown."


def _span(change: Change) -> str:
    return f"{number(change.metric, change.second)} % to {number(change.metric, change.first)} %"


def _name(change: Change) -> str:
    return metric_label(change.metric).lower()


def _and(parts: Sequence[str]) -> str:
    return " and ".join(parts) if len(parts) < 3 else ", ".join(parts[:-1]) + " and " + parts[-1]
