"""The results of one run as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm_align_eval.report.detection import detection_texts, poll_label
from mllm_align_eval.report.evidence import evidence
from mllm_align_eval.report.findings import cautions
from mllm_align_eval.report.headline import headline
from mllm_align_eval.report.labels import (
    arm_label,
    difference_label,
    metric_label,
    number,
    ordered_metrics,
)
from mllm_align_eval.report.markdown import cell_text, table
from mllm_align_eval.report.metric_names import better
from mllm_align_eval.report.reading import warning_head, warnings
from mllm_align_eval.report.reliability import BINNING, calibration_rows, calibration_texts, splits
from mllm_align_eval.report.run_card import asked, run_card

JUDGED = (
    "Two-sided p of the paired difference with Holm's correction; the smallest difference that a test of this size "
    "finds four times in five; and what two one-sided tests and the interval show of harm."
)
READ = ("unreadable", "abstained", "truncated", "errors")


def markdown_report(results: Mapping[str, Any], title: str) -> str:
    """One run: what may be said, every metric by arm and difference with its interval, baselines, how it was measured.

    Lost answers are warned of first.

    Args:
        results: As described in `mllm_align_eval.report`.
        title: What the run is.
    """
    arms, differences = results["arms"], results.get("differences", {})
    baselines = results.get("baselines", {})
    head_row = ["metric", *map(arm_label, arms), *(difference_label(name, arms) for name in differences)]
    rows = []
    for metric in ordered_metrics(arms):
        cells = [cell_text(metric, arms[arm].get(metric)) for arm in arms]
        cells += [cell_text(metric, differences[name].get(metric), signed=True) for name in differences]
        cells += [_plain(metric, baselines[name].get(metric)) for name in baselines]
        rows.append([_key(metric), *cells, _sizes(results, metric)])
    unit = results.get("intervals", {}).get("unit", "scene")
    parts = [f"# {title}"]
    lost = warnings(results)
    if lost:
        parts.append("\n".join([f"> **{warning_head(results)}**", ">", *(f"> - {text}" for text in lost)]))
    parts += [str(headline(results)), *asked(results)]
    notes = [*cautions(results), *detection_texts(results), *calibration_texts(results)]
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    judged = _judged(results)
    if judged:
        parts += ["## What this run is judged by", JUDGED, judged]
    parts.append("## All numbers")
    parts.append(f"Per cent; 95 % intervals by a bootstrap over {unit}s in brackets; differences are paired.")
    parts.append(table([*head_row, *(name.replace("_", " ") for name in baselines), "n (clusters)"], rows))
    return "\n\n".join([*parts, *_calibration(results), *_reading(results), *_card(results)]) + "\n"


def _judged(results: Mapping[str, Any]) -> str:
    rows = [
        [e.label, e.comparison, f"{e.before} to {e.after}", f"{e.difference} ({e.bounds})", e.p, e.detects, e.harm]
        for e in evidence(results)
    ]
    head = ["metric", "compared", "values", "difference", "p (Holm)", "can detect", "no harm done?"]
    return table(head, rows) if rows else ""


def _calibration(results: Mapping[str, Any]) -> list[str]:
    """Errors with intervals, then the bins of every split and arm."""
    rows = [
        [
            row.split,
            arm_label(row.arm),
            row.ece + (f" ({row.ece_bounds})" if row.ece_bounds else ""),
            row.by_chance,
            row.brier + (f" ({row.brier_bounds})" if row.brier_bounds else ""),
        ]
        for row in calibration_rows(results)
    ]
    if not rows:
        return []
    head = ["questions", "arm", "calibration error, %", "by chance", "Brier score"]
    bins = [
        [
            poll_label(split),
            arm_label(arm),
            " ".join(f"{b['confidence']:.2f}:{b['accuracy']:.2f}" for b in parts[split]["bins"]),
        ]
        for split in splits(results)
        for arm, parts in results["calibration"].items()
        if split in parts
    ]
    reliability = table(["questions", "arm", "confidence:accuracy by bin"], bins)
    return ["## Calibration", BINNING, table(head, rows), reliability]


def _reading(results: Mapping[str, Any]) -> list[str]:
    """Per split and arm what became of the generated answers."""
    rows = [
        [poll_label(split), arm_label(arm), *(number("", shares[name]) for name in READ), f"{shares['n']:,}"]
        for arm, found in (results.get("reading") or {}).items()
        for split, shares in found.items()
    ]
    if not rows:
        return []
    head = ["questions", "arm", "unreadable", "cannot tell", "cut", "failed", "n"]
    return ["## Answers as written", "Shares of the generated answers, per cent.", table(head, rows)]


def _card(results: Mapping[str, Any]) -> list[str]:
    """How the run was made."""
    rows = [[head, name, value] for head, pairs in run_card(results) for name, value in pairs]
    return ["## How it was measured", table(["", "", ""], rows)] if rows else []


def _sizes(results: Mapping[str, Any], metric: str) -> str:
    """How many units a metric has, and how many clusters were resampled."""
    cell = next((cells[metric] for cells in results["arms"].values() if metric in cells), {})
    clusters = f" ({cell['clusters']:,})" if cell.get("clusters") else ""
    return f"{cell['n']:,}{clusters}" if cell.get("n") else ""


def _key(metric: str) -> str:
    """What a metric is called, and its key in results.json."""
    label = metric_label(metric)
    way = " (lower is better)" if better(metric) < 0 else ""
    return f"`{metric}`" if label == metric else f"{label} `{metric}`{way}"


def _plain(metric: str, value: float | None) -> str:
    return "" if value is None else number(metric, value)
