"""Geometry of the training curves: one panel per logged number, all arms in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mllm_align_eval.report.comparison import finite

MAX_PANELS = 8
# Logged beside the curves, but bookkeeping: position, speed and memory.
_BOOKKEEPING = ("step", "epoch", "runtime", "per_second", "flos", "tokens", "time", "memory", "num_")


@dataclass(frozen=True)
class Panel:
    """One number over the steps.

    Attributes:
        name: The number's name in the log.
        lines: Per arm its name and the points of a polyline in a box of 100 by 100, y downwards.
        low: The lower end of the axis, as written.
        high: The upper end.
        last_step: The right end of the axis.
        zero: Where zero lies, in per cent from the top, None where it is outside the axis or at its end.
        description: What the drawing shows, for those who do not see it.
    """

    name: str
    lines: tuple[tuple[str, str], ...]
    low: str
    high: str
    last_step: int
    zero: float | None
    description: str


def panels(training: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[list[Panel], list[str]]:
    """Panels for the numbers that training logged.

    Args:
        training: Per arm its log: dictionaries with "step" and numbers, such as a trainer's `state.log_history`.

    Returns:
        At most eight panels, the loss first, and the names of logged numbers that are not shown.
    """
    names: dict[str, None] = {"loss": None}
    for rows in training.values():
        for row in rows:
            names.update(dict.fromkeys(name for name in row if not any(word in name for word in _BOOKKEEPING)))
    found = [panel for name in names if (panel := _panel(name, training))]
    return found[:MAX_PANELS], [panel.name for panel in found[MAX_PANELS:]]


def _panel(name: str, training: Mapping[str, Sequence[Mapping[str, Any]]]) -> Panel | None:
    series = {}
    for arm, rows in training.items():
        points = [(row["step"], row[name]) for row in rows if _is_point(row, name)]
        if len(points) > 1:
            series[arm] = points
    if not series:
        return None
    values = [value for points in series.values() for _, value in points]
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    last = max(step for points in series.values() for step, _ in points)
    lines = [
        (arm, " ".join(f"{step / max(last, 1) * 100:.2f},{_from_top(value, low, high):.2f}" for step, value in points))
        for arm, points in series.items()
    ]
    spans = [f"{arm} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for arm, points in series.items()]
    zero = _from_top(0, low, high) if low < 0 < high else None
    return Panel(
        name, tuple(lines), _written(low), _written(high), int(last), zero, f"{name} over steps: {'; '.join(spans)}"
    )


def _written(value: float) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _is_point(row: Mapping[str, Any], name: str) -> bool:
    return isinstance(row.get(name), int | float) and finite(row[name]) and finite(row.get("step"))


def _from_top(value: float, low: float, high: float) -> float:
    return 100 - (value - low) / (high - low) * 100
