"""The table of the regions study: each arm's numbers, and its difference to the controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from intervals import Columns, Interval, interval, paired_interval
from records import Records
from region_arms import CONTROL, HEAVY, SEEDS, TASKS, Run, base_run


def finished(records: Records, task: str, level: str, steps: int, num_rows: int) -> dict[str, list[dict[str, Any]]]:
    """By arm the records of all seeds at one learning rate; arms that lack one are left out, the base is first."""
    found: dict[str, list[dict[str, Any]]] = {}
    base = records.get(base_run(task, level))
    if base is not None:
        found["base"] = [base]
    for arm in TASKS[task].arms:
        own = [run for run in records.found if isinstance(run, Run) and run[:3] == (task, level, arm)]
        for rate in dict.fromkeys(run.learning_rate for run in own if run[-2:] == (steps, num_rows)):
            seeds = [records.get(Run(task, level, arm, rate, seed, steps, num_rows)) for seed in SEEDS]
            if None not in seeds:
                found[arm] = [record for record in seeds if record is not None]
    return found


def columns_of(records: Sequence[dict[str, Any]], metric: str) -> Columns:
    """What the runs of an arm gave for one metric."""
    tests = [record["test"][metric] for record in records]
    values = np.array([test["values"] for test in tests], dtype=np.float64)
    return Columns(values, np.ones_like(values), [str(cluster) for cluster in tests[0]["clusters"]])


def table(records: Records, task: str, level: str, steps: int, num_rows: int) -> str:
    """Markdown: per cent with 95 % intervals over seeds and clusters, then differences: to controls, then others."""
    found = finished(records, task, level, steps, num_rows)
    if not found:
        return "no arm is finished"
    metrics = list(next(iter(found.values()))[0]["test"])
    lines = [f"| {' | '.join(('arm', *metrics))} |", "|---" * (len(metrics) + 1) + "|"]
    for arm, own in found.items():
        lines.append(_line(arm, [interval(columns_of(own, metric)) for metric in metrics]))
    to_controls = [(arm, control) for control in (CONTROL, HEAVY) for arm in found if arm not in ("base", control)]
    for arm, other in (*to_controls, *TASKS[task].compared):
        if arm in found and other in found:
            differences = [
                paired_interval(columns_of(found[arm], metric), columns_of(found[other], metric)) for metric in metrics
            ]
            lines.append(_line(f"{arm} - {other}", differences, signed=True))
    return "\n".join(lines)


def _line(name: str, cells: Sequence[Interval], signed: bool = False) -> str:
    sign = "+" if signed else ""
    written = (f"{100 * c.value:{sign}.1f} ({100 * c.low:{sign}.1f}, {100 * c.high:{sign}.1f})" for c in cells)
    return f"| {' | '.join((name, *written))} |"
