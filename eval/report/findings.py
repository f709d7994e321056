"""The questions that a reader has, each answered in one line with its difference and interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mllm_align_eval.report.comparison import Change, Roles, compare
from mllm_align_eval.report.labels import (
    GENERATED,
    KEY_METRICS,
    arm_label,
    interval,
    is_rate,
    metric_label,
    metric_note,
    number,
)


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
    """The main measures that base and aligned model both have."""
    roles = Roles.of(results["arms"])
    found = []
    for metric in KEY_METRICS:
        change = compare(results, roles.after, roles.before, metric)
        if change is None:
            continue
        against = compare(results, roles.after, roles.control, metric) if roles.control else None
        control = ""
        if against:
            words = {1: "aligned is above", 0: "no clear difference", -1: "aligned is below"}
            control = f"{number(metric, against.second)}, {words[against.clear]}"
        found.append(
            KeyFigure(
                metric_label(metric),
                metric_note(metric),
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
    accuracy = compare(results, roles.after, roles.before, "world/adversarial/acc")
    gap = compare(results, roles.after, roles.before, "world/visual_gap")
    if gap:
        text = f"Visual gap, aligned against base: {difference_text(gap)}."
        if gap.clear > 0:
            text += " The aligned model depends on the image more than before."
        elif accuracy and accuracy.clear > 0:
            text += (
                " Adversarial accuracy rose without a clear rise of the gap, as it would if the model had "
                "unlearned the prior rather than learned to look."
            )
        notes.append(text)
    generated = compare(results, roles.after, roles.before, "world/adversarial/acc" + GENERATED)
    if generated and accuracy:
        metric = accuracy.metric
        notes.append(
            "Accuracies here compare the log-probabilities of the answers. Read from free generation, adversarial "
            f"accuracy goes from {number(metric, generated.second)} % to {number(metric, generated.first)} % "
            f"(by log-probability {number(metric, accuracy.second)} % to {number(metric, accuracy.first)} %)."
        )
    unreadable = {arm: rate for arm, rate in results.get("unreadable", {}).items() if rate is not None}
    if unreadable:
        rates = ", ".join(f"{arm_label(arm).lower()} {number('', rate)} %" for arm, rate in unreadable.items())
        notes.append(f"Generated answers that could not be read, which count as wrong: {rates}.")
    sixteen = (
        compare(results, roles.before, "base_16bit", "world/adversarial/acc")
        if ("base_16bit" in results["arms"])
        else None
    )
    if sixteen:
        notes.append(
            f"Quantisation alone changed adversarial accuracy by {difference_text(sixteen)}; "
            "all other comparisons are between quantised models."
        )
    return notes
