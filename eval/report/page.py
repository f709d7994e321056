"""The report as one HTML file that asks nothing of any other: styles, script, drawings and pictures are inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mllm_align_eval.report import labels
from mllm_align_eval.report.comparison import Roles, compare, finite
from mllm_align_eval.report.curves import panels
from mllm_align_eval.report.detection import detection_table, detection_texts, poll_label
from mllm_align_eval.report.evidence import evidence, is_positive
from mllm_align_eval.report.figures import figures, letters
from mllm_align_eval.report.findings import cautions, key_figures
from mllm_align_eval.report.gallery import OPEN, GalleryEntry, data_uri, is_pixel_art
from mllm_align_eval.report.headline import headline
from mllm_align_eval.report.metric_names import better
from mllm_align_eval.report.reading import LIMIT, reading_of, warning_head, warnings
from mllm_align_eval.report.reliability import BINNING, LEFT_OUT, calibration_rows, calibration_texts, diagrams
from mllm_align_eval.report.results_file import write_new
from mllm_align_eval.report.run_card import asked, run_card

MARKERS = ("circle", "square", "diamond", "up", "down", "cross")
_USUAL = {"base": 0, "control": 1, "aligned": 2, "base_16bit": 3}


def write_report(
    results: Mapping[str, Any],
    gallery: Sequence[GalleryEntry],
    path: str | Path,
    *,
    title: str,
    training: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the report of a run.

    Args:
        results: As described in `mllm_align_eval.report`.
        gallery: Questions to show with their pictures, in this order.
        path: The HTML file; missing folders are made.
        title: What the run is.
        training: Per arm its training log, see `curves.panels`.
        overwrite: Whether an existing file may be replaced.

    Returns:
        The file's path.

    Raises:
        FileExistsError: If the file exists and `overwrite` is False.
        ValueError: If the results have no arm.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        # Before the work, which takes seconds with a large gallery.
        raise FileExistsError(f"{path} exists; give another path, or overwrite=True to replace it")
    environment = Environment(
        loader=PackageLoader("mllm_align_eval.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    arms = results["arms"]
    roles = Roles.of(arms)
    curves, not_shown = panels(training or {})
    metrics = labels.ordered_metrics(arms)
    cards = [_card(entry, roles) for entry in _each_once(gallery)]
    text = environment.get_template("report.html.j2").render(
        title=title,
        roles=roles,
        headline=headline(results),
        arms=_arms(list(dict.fromkeys([*arms, *(training or {})]))),
        tested=list(arms),
        benchmarks=asked(results),
        warnings=warnings(results),
        warning_head=warning_head(results),
        limit=f"{LIMIT:.0%}".removesuffix("%"),
        key_figures=key_figures(results),
        cautions=cautions(results),
        evidence=evidence(results),
        margin=f"{results.get('margin', 0.01) * 100:g} point either way",
        figures=figures(results),
        baselines=list(zip(letters(results), results.get("baselines", {}), strict=True)),
        detection_texts=detection_texts(results),
        detection=detection_table(results),
        binning=BINNING,
        calibration_texts=calibration_texts(results),
        calibration=calibration_rows(results),
        diagrams=diagrams(results),
        drawn=[arm for arm in arms if arm != LEFT_OUT],
        reading=_reading_rows(results),
        panels=curves,
        trained=[arm for arm in training or {} if any(arm == name for panel in curves for name, _ in panel.lines)],
        not_shown=not_shown,
        gallery=cards,
        judged_cards=sum(card["outcome"] != OPEN for card in cards),
        has_prior=any(card["entry"].prior is not None for card in cards),
        kinds=list(dict.fromkeys(card["entry"].kind for card in cards)),
        differences=[(name, labels.difference_label(name, arms)) for name in results.get("differences", {})],
        table=[_table_row(results, roles.before, metric) for metric in metrics],
        unit=results.get("intervals", {}).get("unit", "scene"),
        method=run_card(results),
        recipe=results.get("recipe") or "",
    )
    return write_new(path, text, overwrite)


def _arms(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Per arm its label, note and style: the usual arms always look the same, others take what is left."""
    free = [i for i in range(len(MARKERS)) if i not in {_USUAL[name] for name in names if name in _USUAL}]
    styles = {}
    for name in names:
        style = _USUAL[name] if name in _USUAL else (free.pop(0) if free else len(MARKERS) - 1)
        styles[name] = {
            "label": labels.arm_label(name),
            "inline": labels.arm_inline(name),
            "note": labels.arm_note(name),
            "style": style,
            "marker": MARKERS[style],
        }
    return styles


def _table_row(results: Mapping[str, Any], before: str, metric: str) -> dict[str, Any]:
    """A metric's cells as written, each with the number that it is sorted by."""
    arms, questions, clusters = [], None, None
    for arm, cells in results["arms"].items():
        cell = cells.get(metric) or {}
        change = compare(results, arm, before, metric) if arm != before else None
        read = _reading_note(results, arm, metric) if cell else ""
        arms.append({**_cell(metric, cell), "sign": change.clear if change else 0, "reading": read})
        questions, clusters = questions or cell.get("n"), clusters or cell.get("clusters")
    differences = []
    for cells in results.get("differences", {}).values():
        cell = cells.get(metric) or {}
        detectable = cell.get("detectable")
        show = not cell.get("excludes_zero") and is_positive(detectable)
        differences.append(
            {
                **_cell(metric, cell, signed=True),
                "sign": (1 if cell["value"] > 0 else -1) if cell.get("excludes_zero") else 0,
                "detectable": labels.number(metric, detectable) if show else "",
            }
        )
    baselines = [_cell(metric, {"value": values.get(metric)}) for values in results.get("baselines", {}).values()]
    return {
        "metric": metric,
        "label": labels.metric_label(metric),
        "lower": better(metric) < 0,
        "n": questions,
        "clusters": clusters,
        "arms": arms,
        "differences": differences,
        "baselines": baselines,
    }


def _cell(metric: str, cell: Mapping[str, Any], signed: bool = False) -> dict[str, Any]:
    value = cell.get("value")
    return {
        "text": labels.number(metric, value, signed),
        "bounds": labels.interval(metric, cell, signed),
        "order": value if finite(value) else "",
    }


def _reading_note(results: Mapping[str, Any], arm: str, metric: str) -> str:
    """What was lost of the generated answers that a score is computed from."""
    shares = reading_of(results, arm, metric)
    if shares is None:
        return ""
    return f"{labels.number('', shares['unreadable'])} unreadable, {labels.number('', shares['truncated'])} cut"


def _reading_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per split and arm what became of the generated answers."""
    found, alarming = results.get("reading") or {}, {"unreadable": LIMIT, "truncated": LIMIT, "errors": 0.0}
    rows = []
    for split in dict.fromkeys(split for splits in found.values() for split in splits):
        for arm in (arm for arm in found if split in found[arm]):
            shares = found[arm][split]
            cells = [
                {"text": labels.number("", shares[name]), "alarm": shares[name] > alarming.get(name, 1.0)}
                for name in ("unreadable", "abstained", "truncated", "errors")
            ]
            rows.append({"name": poll_label(split), "arm": arm, "cells": cells, "n": f"{shares['n']:,}"})
    return rows


def _each_once(gallery: Sequence[GalleryEntry]) -> list[GalleryEntry]:
    """The entries without repetitions: several adapters may have changed the same answer."""
    found: dict[tuple[Any, ...], GalleryEntry] = {}
    for entry in gallery:
        found.setdefault((entry.split, entry.question, entry.truth, id(entry.image), *entry.answers.items()), entry)
    return list(found.values())


def _card(entry: GalleryEntry, roles: Roles) -> dict[str, Any]:
    answers = [(arm, text, entry.right(arm), entry.by_prior(arm)) for arm, text in entry.answers.items()]
    return {
        "entry": entry,
        "uri": data_uri(entry.image) if entry.image is not None else "",
        "pixel_art": entry.image is not None and is_pixel_art(entry.image),
        "alt": f"The picture for: {entry.question}" + (f" The right answer is {entry.truth}." if entry.truth else ""),
        "outcome": entry.outcome(roles.before, roles.after),
        "answers": answers,
    }
