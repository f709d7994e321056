"""Scores of one set of answers: a JSON file and a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from mllm_align.data.files import write_whole
from mllm_align_eval.benchmark import STRICT
from mllm_align_eval.report.labels import interval, number
from mllm_align_eval.report.reading import warnings
from mllm_align_eval.report.terminal import console
from mllm_align_eval.report.ties import ties_text
from mllm_align_eval.statistics import Estimate
from mllm_align_eval.written import Shares


def write_scores(scores: Mapping[str, Estimate], path: Path, judge: Mapping[str, Any] | None = None) -> None:
    """Writes `{key: {value, low, high, n}}`; what is undefined is null. Who judged stands under "judge"."""
    cells: dict[str, Any] = {
        key: {name: value if math.isfinite(value) else None for name, value in estimate.as_dict().items()}
        for key, estimate in scores.items()
    }
    cells |= {"judge": judge} if judge is not None else {}
    write_whole(path, (json.dumps(cells, indent=2) + "\n").encode())


def print_scores(scores: Mapping[str, Estimate], title: str) -> None:
    """Prints a table of all scores, and below it how many ties there were."""
    table = Table(title=title, title_justify="left")
    for heading in ("metric", "value", "95 % interval", "units", "clusters"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for key, estimate in scores.items():
        cells = number(key, estimate.value), interval(key, estimate.as_dict())
        table.add_row(key, *cells, f"{estimate.n:,}", f"{estimate.clusters:,}")
    console().print(table)
    ties = ties_text({key: estimate.as_dict() for key, estimate in scores.items()})
    if ties:
        console().print(ties, highlight=False, markup=False)


def print_lost(reading: Mapping[str, Shares], name: str, parser: str) -> bool:
    """Warns below the table of answers that were lost; returns whether some were.

    Args:
        reading: `scoring.reading_of_answers`.
        name: What the answers are called.
        parser: By whose rules they were scored.
    """
    lost = warnings({"reading": {name: reading}})
    for text in lost:
        console().print(f"WARNING  {text}", style="bold red", highlight=False, markup=False)
    if lost and parser != STRICT:
        note = f"Unread is what the strict rules cannot read; the {parser} ones may take it for an answer."
        console().print(note, style="dim", highlight=False)
    return bool(lost)
