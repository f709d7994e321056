"""Geometry of the dot-and-interval figures: everything in per cent of a track's width, drawn by the template.

The template draws each row as an SVG without a view box whose positions are per cents, so that a figure is as wide as
its place while markers, lines and text keep their size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mllm_align_eval.report.comparison import finite
from mllm_align_eval.report.labels import (
    IMAGE_METRICS,
    KEY_METRICS,
    KINDS,
    arm_label,
    interval,
    metric_label,
    metric_note,
    number,
)

POLLS = ("world/pope_random/acc", "world/pope_popular/acc", "world/pope_adversarial/acc")
_KIND = re.compile(r"world/adversarial/(.+)_acc")


@dataclass(frozen=True)
class Lane:
    """One arm in one row: positions in per cent, and the value and interval as written."""

    arm: str
    at: float
    low: float | None
    high: float | None
    value: str
    bounds: str


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
        parts = [f"{arm_label(a.arm)} {a.value}" + (f" ({a.bounds})" if a.bounds else "") for a in self.lanes]
        return f"{self.label}: {', '.join(parts)}"


@dataclass(frozen=True)
class Figure:
    """Rows over one axis; `ticks` are positions in per cent and their labels."""

    id: str
    title: str
    caption: str
    rows: tuple[Row, ...]
    ticks: tuple[tuple[float, str], ...]


def figures(results: Mapping[str, Any]) -> list[Figure]:
    """The dot-and-interval figures for which the results have numbers.

    Args:
        results: As described in `mllm_align_eval.report`.

    Returns:
        Main measures, kinds of question, images shown, existence polling; those without any row are left out.
    """
    arms = results["arms"]
    kinds = _kind_metrics(arms)
    plans: tuple[tuple[str, str, str, Sequence[str], Mapping[str, str]], ...] = (
        ("measures", "Main measures", "Points are accuracy in per cent, bars 95 % intervals.", KEY_METRICS, {}),
        (
            "kinds",
            "By kind of question",
            "Adversarial accuracy: scenes in which colour, size, side and company all break the prior.",
            tuple(kinds),
            kinds,
        ),
        (
            "images",
            "By the image shown",
            "The same adversarial questions with the right image, another scene's, a grey one and none. A model that "
            "looks falls far when the image is taken away; accuracy that stays comes from text alone.",
            IMAGE_METRICS,
            dict(zip(IMAGE_METRICS, ("Right image", "Another scene's image", "Blank image", "No image"), strict=True)),
        ),
        (
            "polling",
            "Existence polling",
            "Is there a ...? Absent objects drawn at random, by popularity, and as what the prior expects.",
            POLLS,
            dict(zip(POLLS, ("Random", "Popular", "Adversarial"), strict=True)),
        ),
    )
    built = [_figure(results, *plan) for plan in plans]
    return [figure for figure in built if figure.rows]


def _kind_metrics(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    found = {}
    for cells in arms.values():
        for metric in cells:
            match = _KIND.fullmatch(metric)
            if match and metric not in IMAGE_METRICS:
                found[metric] = match[1].replace("_", " ").capitalize()
    known = {f"world/adversarial/{kind}_acc": i for i, kind in enumerate(KINDS)}
    return dict(sorted(found.items(), key=lambda item: known.get(item[0], len(known))))


def _figure(
    results: Mapping[str, Any], name: str, title: str, caption: str, metrics: Sequence[str], labels: Mapping[str, str]
) -> Figure:
    cells = [cell for arm in results["arms"].values() for metric in metrics if (cell := arm.get(metric))]
    numbers = [cell[key] for cell in cells for key in ("value", "low", "high") if finite(cell.get(key))]
    # Shares fill 0 to 100; only a gap may be negative, and then the axis is lengthened in quarters.
    lowest = 0.0
    while numbers and min(numbers) < lowest:
        lowest -= 0.25
    count = round((1 - lowest) / 0.25)
    ticks = [lowest + 0.25 * i for i in range(count + 1)]
    # What quantisation changed is one comparison; a fourth lane in every row would only hide the others.
    arms = [arm for arm in results["arms"] if name == "measures" or arm != "base_16bit"]
    rows = [_row(results, arms, metric, labels.get(metric), lowest) for metric in metrics]
    return Figure(
        name,
        title,
        caption,
        tuple(row for row in rows if row.lanes),
        tuple((_place(tick, lowest), f"{tick * 100:.0f}".replace("-", "\N{MINUS SIGN}")) for tick in ticks),
    )


def _row(results: Mapping[str, Any], arms: Sequence[str], metric: str, label: str | None, lowest: float) -> Row:
    lanes = []
    for arm in arms:
        cell = results["arms"][arm].get(metric)
        if not cell or not finite(cell.get("value")):
            continue
        low, high = (_place(cell[b], lowest) if finite(cell.get(b)) else None for b in ("low", "high"))
        at = _place(cell["value"], lowest)
        lanes.append(Lane(arm, at, low, high, number(metric, cell["value"]), interval(metric, cell)))
    marks = []
    for letter, (_, values) in zip(letters(results), results.get("baselines", {}).items(), strict=True):
        if finite(values.get(metric)):
            marks.append((letter, _place(values[metric], lowest)))
    return Row(
        metric, label or metric_label(metric), "" if label else metric_note(metric), tuple(lanes), _apart(marks)
    )


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


def _place(value: float, lowest: float) -> float:
    return round(min(100.0, max(0.0, (value - lowest) / (1 - lowest) * 100)), 2)
