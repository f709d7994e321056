"""The results as a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mllm_align_eval.report.comparison import Roles, compare
from mllm_align_eval.report.headline import headline
from mllm_align_eval.report.labels import (
    GENERATED,
    MINUS,
    arm_label,
    difference_label,
    is_rate,
    metric_label,
    number,
    ordered_metrics,
)

FILE_WIDTH = 240
UP, DOWN = "\N{BLACK UP-POINTING TRIANGLE}", "\N{BLACK DOWN-POINTING TRIANGLE}"


@dataclass(frozen=True)
class _Layout:
    differences: bool
    decimals: bool
    two_lines: bool = False


# From the fullest to the narrowest; the first that fits is taken.
_LAYOUTS = (
    _Layout(True, True),
    _Layout(True, False),
    _Layout(False, True),
    _Layout(False, False),
    _Layout(False, False, two_lines=True),
)


def console() -> Console:
    """Standard output; where that is a file or a pipe, as wide as tables need."""
    found = Console()
    return found if found.is_terminal else Console(width=FILE_WIDTH)


def print_table(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints metrics by arms with their 95 % intervals, and the headline below.

    An arm's value is marked with a triangle where its paired difference from the base excludes zero. The differences
    themselves are columns where the console is wide enough for them.

    Args:
        results: As described in `mllm_align_eval.report`.
        console: Where to print; standard output by default.
    """
    out = Console() if console is None else console
    before = Roles.of(results["arms"]).before
    tables = [_table(results, before, layout) for layout in _LAYOUTS]
    room = out.options.update(max_width=10_000)
    fitting = (table for table in tables if Measurement.get(out, room, table).minimum <= out.width)
    out.print(next(fitting, tables[-1]))
    out.print(f"{UP} {DOWN} the paired difference from {escape(arm_label(before).lower())} excludes zero", style="dim")
    out.print(str(headline(results)), highlight=False, markup=False)


def _table(results: Mapping[str, Any], before: str, layout: _Layout) -> Table:
    arms = results["arms"]
    differences = list(results.get("differences", {})) if layout.differences else []
    metrics = ordered_metrics(arms)
    rows = {}
    for metric in metrics:
        rows[metric] = [_arm_cell(results, before, arm, metric, layout) for arm in arms]
        rows[metric] += [
            _difference_cell(results["differences"][name].get(metric), metric, layout) for name in differences
        ]
    table = Table(
        title="Results (per cent, 95 % interval)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("Metric", overflow="fold", min_width=20)
    for i, label in enumerate((*map(arm_label, arms), *(difference_label(name, arms) for name in differences))):
        label = label.replace(", ", ",\n") if layout.two_lines else label
        # Said outright, because rich takes a cell's longest word for the least width, wrapped or not.
        lines = [line for text in (label, *(cells[i].plain for cells in rows.values())) for line in text.split("\n")]
        table.add_column(Text(label), justify="right", no_wrap=True, min_width=max(map(len, lines)))
    generated = [metric for metric in metrics if metric.endswith(GENERATED)]
    for metric, cells in rows.items():
        if generated and metric == generated[0]:
            table.add_section()
            table.add_row("[bold]Read from generation[/bold]")
        table.add_row(Text(metric_label(metric).removesuffix(", generated")), *cells)
    if results.get("unreadable"):
        table.add_section()
        table.add_row("Unreadable answers", *(f"{number('', results['unreadable'].get(arm))}  " for arm in arms))
    return table


def _arm_cell(results: Mapping[str, Any], before: str, arm: str, metric: str, layout: _Layout) -> Text:
    cell = results["arms"][arm].get(metric)
    if not cell:
        return Text()
    change = compare(results, arm, before, metric) if arm != before else None
    mark = {1: UP, -1: DOWN}.get(change.clear if change else 0, " ")
    # The mark stays at the end of the first line, so that the values stand under each other.
    value, bounds = number(metric, cell.get("value")), _bounds(metric, cell, layout)
    return Text(f"{value} {mark}\n{bounds}" if layout.two_lines else f"{value} {bounds} {mark}")


def _difference_cell(cell: Mapping[str, Any] | None, metric: str, layout: _Layout) -> Text:
    if not cell:
        return Text()
    text = f"{number(metric, cell.get('value'), signed=True)} {_bounds(metric, cell, layout)}"
    return Text(f"{text} *", style="bold") if cell.get("excludes_zero") else Text(f"{text}  ")


def _bounds(metric: str, cell: Mapping[str, Any], layout: _Layout) -> str:
    if cell.get("low") is None or cell.get("high") is None:
        return ""
    if layout.decimals:
        return f"({number(metric, cell['low'])}, {number(metric, cell['high'])})"
    scale, digits = (100, 0) if is_rate(metric) else (1, 1)
    low, high = (f"{cell[bound] * scale:.{digits}f}" for bound in ("low", "high"))
    return f"({low}, {high})".replace("-", MINUS)
