"""The results of one run, or of several side by side, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mllm_align_eval.report.comparison import Roles
from mllm_align_eval.report.findings import cautions
from mllm_align_eval.report.headline import headline
from mllm_align_eval.report.labels import (
    arm_label,
    difference_label,
    interval,
    metric_label,
    number,
    ordered_metrics,
)


def markdown_report(results: Mapping[str, Any], title: str) -> str:
    """One run: what may be said, every metric by arm and difference with its interval, baselines, how it was measured.

    Args:
        results: As described in `mllm_align_eval.report`.
        title: What the run is.
    """
    arms, differences = results["arms"], results.get("differences", {})
    baselines = results.get("baselines", {})
    head = ["metric", *map(arm_label, arms), *(difference_label(name, arms) for name in differences)]
    rows = []
    for metric in ordered_metrics(arms):
        cells = [_cell(metric, arms[arm].get(metric)) for arm in arms]
        cells += [_cell(metric, differences[name].get(metric), signed=True) for name in differences]
        rows.append([_name(metric), *cells, *(_plain(metric, baselines[name].get(metric)) for name in baselines)])
    parts = [f"# {title}", str(headline(results))]
    notes = cautions(results)
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    parts.append("Per cent; 95 % intervals by a bootstrap over scenes in brackets; differences are paired.")
    parts.append(table([*head, *(name.replace("_", " ") for name in baselines)], rows))
    judged = _judged(results)
    if judged:
        parts += ["## What this run is judged by", "Two-sided p of the paired difference, Holm-adjusted.", judged]
    return "\n\n".join(parts) + "\n"


def markdown_comparison(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Several runs side by side: a column for each arm of each run, a row for each metric that two of them have.

    Args:
        runs: Results by the name of their run.
    """
    return table(*comparison_cells(runs))


def comparison_cells(runs: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a comparison; the base is shown once where runs agree on all of it."""
    columns: dict[str, Mapping[str, Any]] = {}
    for run, results in runs.items():
        before = Roles.of(results["arms"]).before
        for arm, cells in results["arms"].items():
            if arm == before and cells in columns.values():
                continue
            columns[f"{run}: {arm_label(arm).lower()}" if len(runs) > 1 else arm_label(arm)] = cells
    metrics = ordered_metrics(columns)
    if len(runs) > 1:
        metrics = [metric for metric in metrics if sum(metric in cells for cells in columns.values()) > 1]
    rows = [[_name(metric), *(_cell(metric, cells.get(metric)) for cells in columns.values())] for metric in metrics]
    return ["metric", *columns], rows


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; bars within cells are written so that they end none."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    first, *rest = [f"| {' | '.join(row)} |" for row in lines]
    return "\n".join([first, "|---|" + "---:|" * (len(head) - 1), *rest])


def _judged(results: Mapping[str, Any]) -> str:
    rows = [
        [_name(metric), difference_label(name, results["arms"]), f"{cell['p_holm']:.3g}"]
        for name, cells in results.get("primary", {}).items()
        for metric, cell in cells.items()
    ]
    return table(["metric", "difference", "p"], rows) if rows else ""


def _name(metric: str) -> str:
    label = metric_label(metric)
    return f"`{metric}`" if label == metric else label


def _cell(metric: str, cell: Mapping[str, Any] | None, signed: bool = False) -> str:
    if not cell:
        return ""
    bounds = interval(metric, cell, signed)
    mark = "**" if signed and cell.get("excludes_zero") else ""
    return f"{mark}{number(metric, cell.get('value'), signed)}{mark}" + (f" ({bounds})" if bounds else "")


def _plain(metric: str, value: float | None) -> str:
    return "" if value is None else number(metric, value)
