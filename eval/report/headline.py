"""The sentences at the head of the report, computed from the numbers: what changed, what it cost, against what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mllm_align_eval.report.comparison import Change, Roles, compare
from mllm_align_eval.report.labels import interval, metric_label, number

PRIMARY = ("world/adversarial/acc", "world/pair_acc")
IN_DISTRIBUTION = "world/in_distribution/acc"
LEVEL = 0.05


@dataclass(frozen=True)
class Headline:
    """Three sentences that belong together; none of them may be shown without the others.

    Attributes:
        effect: Whether the aligned model is better than the base, and whether the intervals overlap.
        cost: What happened on scenes like those of training.
        control: Whether the plain next-token control on the same pairs does as well.
    """

    effect: str
    cost: str
    control: str

    def __str__(self) -> str:
        """All that there is to say, as one paragraph."""
        return " ".join(part for part in (self.effect, self.cost, self.control) if part)


def headline(results: Mapping[str, Any]) -> Headline:
    """States what the numbers of a run allow to be stated, and no more.

    Args:
        results: As described in `mllm_align_eval.report`.

    Returns:
        The sentences. The measures are adversarial accuracy and pair accuracy on the world.
    """
    roles = Roles.of(results["arms"])
    changes = _changes(results, roles.after, roles.before)
    if roles.after == roles.before:
        return Headline("This run does not compare an aligned model with its base.", "", "")
    if not changes:
        return Headline(_judged(results, roles), "", "")
    against = _changes(results, roles.after, roles.control) if roles.control else []
    cost = compare(results, roles.after, roles.before, IN_DISTRIBUTION)
    return Headline(_effect(changes), _cost(cost), _control(against, changes))


def _changes(results: Mapping[str, Any], first: str, second: str) -> list[Change]:
    found = [compare(results, first, second, metric) for metric in PRIMARY]
    return [change for change in found if change]


def _judged(results: Mapping[str, Any], roles: Roles) -> str:
    """On other benchmarks than the world: what became of the metrics that they are judged by, tested together."""
    tests = results.get("primary", {}).get(f"{roles.after}-{roles.before}", {})
    parts = []
    for metric, cell in tests.items():
        change = compare(results, roles.after, roles.before, metric)
        if change is not None:
            verdict = "a clear change" if cell["p_holm"] < LEVEL else "no clear change"
            parts.append(
                f"{metric} goes from {number(metric, change.second)} to {number(metric, change.first)} ({verdict})"
            )
    if not parts:
        return "This run has no metric by which an aligned model and its base are judged."
    adjusted = f"; Holm's correction over {len(parts)} of them" if len(parts) > 1 else ""
    return f"{_and(parts)}{adjusted}."


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
        reading = ": no advantage of the preference objective over the pairs themselves is shown" if helped else ""
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
