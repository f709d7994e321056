"""Geometry of the dot-and-interval figures: everything in per cent of a track's width, drawn by the template.

The template draws each row as an SVG without a view box whose positions are per cents, so that a figure is as wide as
its place while markers, lines and text keep their size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mllm_align_eval.report.comparison import finite
from mllm_align_eval.report.evidence import arms_of
from mllm_align_eval.report.labels import arm_label, difference_label, interval, metric_label, metric_note, number
from mllm_align_eval.report.plans import Plan, plans

MINUS = "\N{MINUS SIGN}"
# Half the width of an axis of differences, the first that holds them all.
HALF_WIDTHS = (0.05, 0.1, 0.2, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Lane:
    """One arm in one row: positions in per cent, and the value and interval as written."""

    arm: str
    at: float
    low: float | None
    high: float | None
    value: str
    bounds: str
    label: str = ""


@dataclass(frozen=True)
class Row:
    """One metric of a figure; `marks` are the baselines' letters and their positions."""

    metric: str
    label: str
    note: str
    lanes: tuple[Lane, ...]
    marks: tuple[tuple[str, float], ...]

    @property
    def description(self) -> str:
        """What the drawing shows, for those who do not see it."""
        parts = [
            f"{a.label or arm_label(a.arm)} {a.value}" + (f" ({a.bounds})" if a.bounds else "") for a in self.lanes
        ]
        return f"{self.label}: {', '.join(parts)}"


@dataclass(frozen=True)
class Figure:
    """Rows over one axis; `ticks` are positions in per cent and their labels, `zero` where a line marks no change."""

    id: str
    title: str
    caption: str
    rows: tuple[Row, ...]
    ticks: tuple[tuple[float, str], ...]
    zero: float | None = None


def figures(results: Mapping[str, Any]) -> list[Figure]:
    """The dot-and-interval figures for which the results have numbers.

    Args:
        results: As described in `mllm_align_eval.report`.

    Returns:
        Main measures; then by benchmark its splits and kinds of question, their differences, and the images shown.
        Those without any row are left out.
    """
    built = [_forest(results, plan) if plan.differences else _figure(results, plan) for plan in plans(results)]
    return [figure for figure in built if figure.rows]


def _figure(results: Mapping[str, Any], plan: Plan) -> Figure:
    cells = [cell for arm in results["arms"].values() for metric in plan.metrics if (cell := arm.get(metric))]
    numbers = [cell[key] for cell in cells for key in ("value", "low", "high") if finite(cell.get(key))]
    # Shares fill 0 to 100; only a gap may be negative, and then the axis is lengthened in quarters.
    lowest = 0.0
    while numbers and min(numbers) < lowest:
        lowest -= 0.25
    count = round((1 - lowest) / 0.25)
    ticks = [lowest + 0.25 * i for i in range(count + 1)]
    # What quantisation changed is one comparison; a fourth lane in every row would only hide the others.
    arms = [arm for arm in results["arms"] if plan.id == "measures" or arm != "base_16bit"]
    rows = [_row(results, arms, metric, label, lowest) for metric, label in plan.metrics.items()]
    return Figure(
        plan.id,
        plan.title,
        plan.caption,
        tuple(row for row in rows if row.lanes),
        tuple((_place(tick, lowest), f"{tick * 100:.0f}".replace("-", MINUS)) for tick in ticks),
    )


def _row(results: Mapping[str, Any], arms: Sequence[str], metric: str, label: str, lowest: float) -> Row:
    lanes = []
    for arm in arms:
        cell = results["arms"][arm].get(metric)
        if cell and finite(cell.get("value")):
            at, low, high = _places(cell, lowest, 1.0)
            lanes.append(Lane(arm, at, low, high, number(metric, cell["value"]), interval(metric, cell)))
    marks = []
    for letter, (_, values) in zip(letters(results), results.get("baselines", {}).items(), strict=True):
        if finite(values.get(metric)):
            marks.append((letter, _place(values[metric], lowest)))
    return Row(
        metric, label or metric_label(metric), "" if label else metric_note(metric), tuple(lanes), _apart(marks)
    )


def _forest(results: Mapping[str, Any], plan: Plan) -> Figure:
    """Paired differences on an axis around zero, as wide on both sides."""
    drawn = [(name, arms_of(name, results["arms"])[0]) for name in plan.differences]
    cells = [cell for name, _ in drawn for m in plan.metrics if (cell := results["differences"][name].get(m))]
    numbers = [abs(cell[key]) for cell in cells for key in ("value", "low", "high") if finite(cell.get(key))]
    half = next((width for width in HALF_WIDTHS if width >= max(numbers, default=0)), HALF_WIDTHS[-1])
    rows = []
    for metric, label in plan.metrics.items():
        lanes = []
        for name, arm in drawn:
            cell = results["differences"][name].get(metric)
            if cell and finite(cell.get("value")):
                written = number(metric, cell["value"], signed=True), interval(metric, cell, signed=True)
                lanes.append(Lane(arm, *_places(cell, -half, half), *written, difference_label(name, results["arms"])))
        rows.append(Row(metric, label or metric_label(metric), "", tuple(lanes), ()))
    ticks = tuple((25.0 * i, f"{(i - 2) * half * 50:+g}".replace("-", MINUS) if i != 2 else "0") for i in range(5))
    return Figure(plan.id, plan.title, plan.caption, tuple(row for row in rows if row.lanes), ticks, 50.0)


def _apart(marks: Sequence[tuple[str, float]], nearest: float = 4.0) -> tuple[tuple[str, float], ...]:
    """Joins letters that would be drawn over one another; they stand at the first one's place."""
    joined: list[tuple[str, float]] = []
    for letter, at in sorted(marks, key=lambda mark: mark[1]):
        if joined and at - joined[-1][1] < nearest:
            joined[-1] = (joined[-1][0] + letter, joined[-1][1])
        else:
            joined.append((letter, at))
    return tuple(joined)


def letters(results: Mapping[str, Any]) -> list[str]:
    """A letter for each baseline, by which the figures name it."""
    return [chr(ord("a") + i % 26) for i in range(len(results.get("baselines", {})))]


def _places(cell: Mapping[str, Any], lowest: float, highest: float) -> tuple[float, float | None, float | None]:
    """Where a cell's value and its bounds lie."""
    low, high = (
        _place(cell[bound], lowest, highest) if finite(cell.get(bound)) else None for bound in ("low", "high")
    )
    return _place(cell["value"], lowest, highest), low, high


def _place(value: float, lowest: float, highest: float = 1.0) -> float:
    share = (value - lowest) / (highest - lowest) * 100
    return round(min(100.0, max(0.0, share)), 2) if math.isfinite(share) else 0.0
