"""The report as one HTML file that asks nothing of any other: styles, script, drawings and pictures are inside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mllm_align_eval.report import labels
from mllm_align_eval.report.comparison import Roles, compare, finite
from mllm_align_eval.report.curves import panels
from mllm_align_eval.report.detection import detection_table, detection_text
from mllm_align_eval.report.figures import figures, letters
from mllm_align_eval.report.findings import cautions, key_figures
from mllm_align_eval.report.gallery import GalleryEntry, data_uri, is_pixel_art
from mllm_align_eval.report.headline import headline
from mllm_align_eval.report.results_file import write_new

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
        loader=PackageLoader("mllm_align_eval.report", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    arms = results["arms"]
    roles = Roles.of(arms)
    curves, not_shown = panels(training or {})
    metrics = labels.ordered_metrics(arms)
    text = environment.get_template("template.html.j2").render(
        title=title,
        roles=roles,
        headline=headline(results),
        arms=_arms(list(dict.fromkeys([*arms, *(training or {})]))),
        tested=list(arms),
        key_figures=key_figures(results),
        cautions=cautions(results),
        figures=figures(results),
        baselines=list(zip(letters(results), results.get("baselines", {}), strict=True)),
        panels=curves,
        trained=[arm for arm in training or {} if any(arm == name for panel in curves for name, _ in panel.lines)],
        not_shown=not_shown,
        detection_text=detection_text(results),
        detection=detection_table(results),
        differences=[(name, labels.difference_label(name, arms)) for name in results.get("differences", {})],
        table=[_table_row(results, roles.before, metric) for metric in metrics],
        gallery=[_card(entry, roles) for entry in gallery],
        kinds=list(dict.fromkeys(entry.kind for entry in gallery)),
        method=_method(results),
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
            "note": labels.arm_note(name),
            "style": style,
            "marker": MARKERS[style],
        }
    return styles


def _table_row(results: Mapping[str, Any], before: str, metric: str) -> dict[str, Any]:
    """A metric's cells as written, each with the number that it is sorted by."""
    arms, questions = [], None
    for arm, cells in results["arms"].items():
        cell = cells.get(metric) or {}
        change = compare(results, arm, before, metric) if arm != before else None
        arms.append({**_cell(metric, cell), "sign": change.clear if change else 0})
        questions = questions or cell.get("n")
    differences = []
    for cells in results.get("differences", {}).values():
        cell = cells.get(metric) or {}
        detectable = cell.get("detectable")
        show = not cell.get("excludes_zero") and finite(detectable)
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
        "n": questions,
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


def _card(entry: GalleryEntry, roles: Roles) -> dict[str, Any]:
    answers = [(arm, text, entry.right(arm), entry.by_prior(arm)) for arm, text in entry.answers.items()]
    return {
        "entry": entry,
        "uri": data_uri(entry.image),
        "pixel_art": is_pixel_art(entry.image),
        "outcome": entry.outcome(roles.before, roles.after),
        "answers": answers,
    }


def _method(results: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """How it was measured: headed lists of names and values."""
    run = [("Seed", str(results["seed"]))] if results.get("seed") is not None else []
    if finite(results.get("seconds")):
        run.append(("Whole run", _duration(results["seconds"])))
    stages = [(name, _duration(value)) for name, value in results.get("stages", {}).items() if finite(value)]
    sections = [("Run", run), ("Time by stage", stages)]
    sections += [
        (head, _pairs(results.get(head.lower()) or {})) for head in ("Data", "Intervals", "Machine", "Versions")
    ]
    return [(head, rows) for head, rows in sections if rows]


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    def written(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {written(item)}" for key, item in value.items())
        if isinstance(value, list | tuple):
            return ", ".join(written(item) for item in value)
        return value if isinstance(value, str) else json.dumps(value, default=str)

    return [(str(name).replace("_", " "), written(value)) for name, value in values.items()]


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours} h " if hours else "") + f"{minutes} min {rest} s"
