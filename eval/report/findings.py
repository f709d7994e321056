"""The questions that a reader has, each answered in one line with its difference and interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mllm_align_eval.report.comparison import Change, Roles, compare, finite
from mllm_align_eval.report.evidence import detects_text
from mllm_align_eval.report.labels import (
    arm_inline,
    inline_label,
    interval,
    is_rate,
    metric_label,
    metric_note,
    number,
    with_unit,
)
from mllm_align_eval.report.leading import benchmarks_of, leading, primary, visual_gaps
from mllm_align_eval.report.metric_names import GENERATED, MEASURES, better, parse_key
from mllm_align_eval.report.reading import LIMIT
from mllm_align_eval.report.ties import ties_texts

SIXTEEN_BIT = "base_16bit"


@dataclass(frozen=True)
class KeyFigure:
    """One measure before and after.

    Attributes:
        label: What it is.
        note: How to read it.
        before: Its value in the base, as written.
        after: Its value in the aligned model.
        change: The difference, as written.
        bounds: Its 95 % interval, or nothing.
        mark: A triangle up or down where the difference excludes zero, else an equals sign.
        control: The control's value, and whether the aligned model is above, level or below; empty without one.
    """

    label: str
    note: str
    before: str
    after: str
    change: str
    bounds: str
    mark: str
    control: str


def key_figures(results: Mapping[str, Any]) -> list[KeyFigure]:
    """The main measures that base and aligned model both have; none of a model alone."""
    roles = Roles.of(results["arms"])
    found = []
    for metric in leading(results) if roles.after != roles.before else ():
        change = compare(results, roles.after, roles.before, metric)
        if change is None:
            continue
        against = compare(results, roles.after, roles.control, metric) if roles.control else None
        control = ""
        if against:
            after = arm_inline(roles.after)
            words = {1: f"{after} is above", 0: "no clear difference", -1: f"{after} is below"}
            control = f"{number(metric, against.second)}, {words[against.clear]}"
        found.append(
            KeyFigure(
                metric_label(metric),
                metric_note(metric) or ("lower is better" if better(metric) < 0 else ""),
                number(metric, change.second),
                number(metric, change.first),
                _points(change),
                _bounds(change),
                {1: "\N{BLACK UP-POINTING TRIANGLE}", -1: "\N{BLACK DOWN-POINTING TRIANGLE}"}.get(change.clear, "="),
                control,
            )
        )
    return found


def difference_text(change: Change) -> str:
    """A difference as "+32.4 points (+29.0 to +35.7)"."""
    bounds = _bounds(change)
    return _points(change) + (f" ({bounds})" if bounds else "")


def _points(change: Change) -> str:
    return number(change.metric, change.difference, signed=True) + (" points" if is_rate(change.metric) else "")


def _bounds(change: Change) -> str:
    return interval(change.metric, {"low": change.low, "high": change.high}, signed=True)


def cautions(results: Mapping[str, Any]) -> list[str]:
    """What the figures do not say by themselves: gains without looking, the other way of reading, lost answers."""
    roles = Roles.of(results["arms"])
    notes = []
    for benchmark in benchmarks_of(results):
        judged = primary(results, benchmark)
        notes += _gaps(results, roles, benchmark, judged[:1])
        for metric in judged[:1]:
            notes += _blind(results, roles, metric)
            notes += _generated(results, roles, metric)
    notes += detects_text(results)
    # Above that share the report warns in a place of its own.
    unreadable = {arm: rate for arm, rate in results.get("unreadable", {}).items() if rate is not None}
    if 0 < max(unreadable.values(), default=0) <= LIMIT:
        rates = ", ".join(f"{arm_inline(arm)} {number('', rate)} %" for arm, rate in unreadable.items())
        notes.append(f"Written answers that could not be read, which count as wrong: {rates}.")
    return notes + ties_texts(results) + _quantised(results, roles)


def _gaps(results: Mapping[str, Any], roles: Roles, benchmark: str, judged: list[str]) -> list[str]:
    """Whether the model depends on the picture more than before."""
    if roles.after == roles.before:
        return []
    accuracy = compare(results, roles.after, roles.before, judged[0]) if judged else None
    notes, after = [], arm_inline(roles.after)
    for metric in visual_gaps(results, benchmark, judged)[:1]:
        gap = compare(results, roles.after, roles.before, metric)
        if gap is None:
            continue
        text = f"{metric_label(metric)}, {after} against {arm_inline(roles.before)}: {difference_text(gap)}."
        if gap.clear > 0:
            text += f" The model ({after}) depends on the image more than before."
        elif accuracy and accuracy.clear > 0:
            text += (
                f" {metric_label(accuracy.metric)} rose without a clear rise of the gap, as it would if the model had "
                "unlearned a habit of answering rather than learned to look."
            )
        notes.append(text)
    return notes


def _blind(results: Mapping[str, Any], roles: Roles, metric: str) -> list[str]:
    """The model is not shown to beat what can be had without the picture."""
    cell = results["arms"][roles.after].get(metric) or {}
    blind = [(v[metric], name) for name, v in results.get("baselines", {}).items() if finite(v.get(metric))]
    if not blind or better(metric) <= 0 or not finite(cell.get("low")) or max(blind)[0] < cell["low"]:
        return []
    value, name = max(blind)
    return [
        f"{metric_label(metric)}: {arm_inline(roles.after)} at {with_unit(metric, cell['value'])} is not shown to "
        f"beat \N{LEFT DOUBLE QUOTATION MARK}{name.replace('_', ' ')}\N{RIGHT DOUBLE QUOTATION MARK}, which needs no "
        f"picture ({with_unit(metric, value)})."
    ]


def _generated(results: Mapping[str, Any], roles: Roles, metric: str) -> list[str]:
    """The same read from what the models wrote, where the metric is of log-probabilities."""
    if parse_key(metric).generated or MEASURES.get(parse_key(metric).measure, MEASURES["acc"]).text:
        return []
    cells = [(arm, results["arms"][arm].get(metric + GENERATED) or {}) for arm in (roles.before, roles.after)]
    found = dict((arm, cell["value"]) for arm, cell in cells if finite(cell.get("value")))
    if metric not in results["arms"][roles.before] or roles.before not in found:
        return []
    written = ", ".join(f"{arm_inline(arm)} {with_unit(metric, value)}" for arm, value in found.items())
    return [
        f"{metric_label(metric)} compares the log-probabilities of the answers. Read from what the models wrote it "
        f"is: {written}."
    ]


def _quantised(results: Mapping[str, Any], roles: Roles) -> list[str]:
    """What quantisation alone changed."""
    if SIXTEEN_BIT not in results["arms"]:
        return []
    metrics = [metric for benchmark in benchmarks_of(results) for metric in primary(results, benchmark)[:1]]
    changes = [found for metric in metrics if (found := compare(results, roles.before, SIXTEEN_BIT, metric))]
    moved = ", ".join(f"{inline_label(change.metric)} by {difference_text(change)}" for change in changes)
    if not moved:
        return []
    return [f"Quantisation alone changed {moved}; all other comparisons are between quantised models."]
