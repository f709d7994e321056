"""Scores of one set of answers: a JSON file and a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from mllm_align.data.files import write_whole
from mllm_align_eval.report.labels import interval, number
from mllm_align_eval.report.terminal import console
from mllm_align_eval.statistics import Estimate


def write_scores(scores: Mapping[str, Estimate], path: Path, judge: Mapping[str, Any] | None = None) -> None:
    """Writes `{key: {value, low, high, n}}`; what is undefined is null. Who judged stands under "judge"."""
    cells: dict[str, Any] = {
        key: {name: value if math.isfinite(value) else None for name, value in estimate.as_dict().items()}
        for key, estimate in scores.items()
    }
    cells |= {"judge": judge} if judge is not None else {}
    write_whole(path, (json.dumps(cells, indent=2) + "\n").encode())


def print_scores(scores: Mapping[str, Estimate], title: str) -> None:
    """Prints a table of all scores."""
    table = Table(title=title, title_justify="left")
    for heading in ("metric", "value", "95 % interval", "units", "clusters"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for key, estimate in scores.items():
        cells = number(key, estimate.value), interval(key, estimate.as_dict())
        table.add_row(key, *cells, f"{estimate.n:,}", f"{estimate.clusters:,}")
    console().print(table)
