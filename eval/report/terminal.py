"""The results as a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    MINUS,
    arm_inline,
    arm_label,
    difference_label,
    is_rate,
    metric_label,
    number,
    ordered_metrics,
)
from mllm_align_eval.report.leading import leading
from mllm_align_eval.report.metric_names import GENERATED, parse_key
from mllm_align_eval.report.reading import by_benchmark, warnings

MAX_ROWS = 40
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

    Where similarities were compared, what chance gives stands beside the arms, as far as it is known. An arm's value
    is marked with a triangle where its paired difference from the base excludes zero. The differences themselves are
    columns where the console is wide enough for them. Of more than 40 metrics the main ones are shown. Lost or cut
    answers are warned of last, where they are seen.

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
    if len(results["arms"]) > 1:
        out.print(f"{UP} {DOWN} the paired difference from {escape(arm_inline(before))} excludes zero", style="dim")
    left_out = len(ordered_metrics(results["arms"])) - len(_shown(results))
    if left_out:
        out.print(f"{left_out} more metrics are in the report and in results.json", style="dim", highlight=False)
    out.print(str(headline(results)), highlight=False, markup=False)
    for text in warnings(results):
        out.print(f"WARNING  {text}", style="bold red", highlight=False, markup=False)


def _shown(results: Mapping[str, Any]) -> list[str]:
    """All metrics, or of many those that lead and the accuracies of splits and kinds under the right picture."""
    metrics = ordered_metrics(results["arms"])
    if len(metrics) <= MAX_ROWS:
        return metrics
    first = leading(results)
    keys = {metric: parse_key(metric) for metric in metrics if metric not in first}
    others = [
        metric
        for metric, key in keys.items()
        if key.measure.endswith("acc")
        and not (key.picture or key.scoring)
        and not (key.generated and metric.removesuffix(GENERATED) in metrics)
    ]
    return (first + others)[:MAX_ROWS]


def _table(results: Mapping[str, Any], before: str, layout: _Layout) -> Table:
    arms = results["arms"]
    differences = list(results.get("differences", {})) if layout.differences else []
    metrics = _shown(results)
    chance = _chance(results, metrics)
    rows = {}
    for metric in metrics:
        rows[metric] = [_arm_cell(results, before, arm, metric, layout) for arm in arms]
        rows[metric] += [
            _difference_cell(results["differences"][name].get(metric), metric, layout) for name in differences
        ]
        rows[metric] += [Text(number(metric, chance[metric]) if metric in chance else "")] if chance else []
    table = Table(
        title="Results (per cent, 95 % interval)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("Metric", overflow="fold", min_width=20)
    labels = [*map(arm_label, arms), *(difference_label(name, arms) for name in differences)]
    for i, label in enumerate([*labels, "Chance"] if chance else labels):
        label = label.replace(", ", ",\n") if layout.two_lines else label
        # Said outright, because rich takes a cell's longest word for the least width, wrapped or not.
        lines = [line for text in (label, *(cells[i].plain for cells in rows.values())) for line in text.split("\n")]
        table.add_column(Text(label), justify="right", no_wrap=True, min_width=max(map(len, lines)))
    generated = [metric for metric in metrics if metric.endswith(GENERATED)]
    if 0 < len(generated) < len(metrics):
        table.add_row("[bold]By the most probable answer[/bold]")
    for metric, cells in rows.items():
        if generated and metric == generated[0]:
            table.add_section()
            table.add_row("[bold]By what the model wrote[/bold]")
        table.add_row(Text(metric_label(metric).removesuffix(", generated")), *cells)
    _add_reading(table, results)
    return table


def _chance(results: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, float]:
    """What chance gives of the metrics, where similarities were compared."""
    known = results.get("baselines", {}).get("chance", {}) if results.get("scores") == "similarity" else {}
    return {metric: known[metric] for metric in metrics if metric in known}


def _add_reading(table: Table, results: Mapping[str, Any]) -> None:
    """Rows with the shares of generated answers that were lost or cut."""
    arms, found = results["arms"], by_benchmark(results)
    rows = [
        (f"{name} answers{f' ({benchmark})' if len(found) > 1 else ''}", {arm: s[share] for arm, s in shares.items()})
        for benchmark, shares in found.items()
        for name, share in (("Unreadable", "unreadable"), ("Cut", "truncated"))
    ]
    if not found and results.get("unreadable"):
        rows = [("Unreadable answers", results["unreadable"])]
    if rows:
        table.add_section()
    for name, shares in rows:
        table.add_row(name, *(f"{number('', shares.get(arm))}  " for arm in arms))


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
