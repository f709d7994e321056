"""The page of the study of named pictures: what was done, and how often names were followed in each order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from intervals import Columns, Interval, interval, paired_interval
from records import Records
from reference_arms import ARMS, ASKS, BASE, CONTROL, LORA_RANK, NUM_ROWS, ROWS_PER_STEP, SEEDS, Run, base_run

METRICS = ("first", "turned", "both", "equal")
QUESTIONS: Mapping[str, str] = {
    "which": "In which picture is the small red circle?",
    "describe": "Describe picture two.",
}


def finished(records: Records, steps: int) -> dict[str, list[dict[str, Any]]]:
    """By arm the records of all seeds; arms that lack one are left out."""
    found: dict[str, list[dict[str, Any]]] = {}
    for arm in ARMS:
        runs = [base_run()] if arm == BASE else [Run(arm, seed, steps) for seed in SEEDS]
        own = [record for run in runs if (record := records.get(run)) is not None]
        if len(own) == len(runs):
            found[arm] = own
    return found


def columns_of(own: Sequence[Mapping[str, Any]], metric: str) -> Columns:
    """What the runs of an arm gave for one metric; every row is a unit by itself."""
    values = np.array([record["test"][metric]["values"] for record in own], dtype=np.float64)
    return Columns(values, np.ones_like(values), [str(number) for number in range(values.shape[1])])


def page(records: Records, steps: int) -> str:
    """Markdown of all that is finished."""
    found = finished(records, steps)
    lines = [*_done(steps), *(_table(found, ask) for ask in QUESTIONS)]
    costs = [f"`{arm}` {np.mean([r['seconds'] for r in own]):.0f} s" for arm, own in found.items() if arm != BASE]
    lines += [f"A run took {', '.join(costs)} of a CPU thread beside other work."] if costs else []
    return "\n\n".join(lines) + "\n"


def _done(steps: int) -> list[str]:
    kinds = {ask: f"{100 * ASKS.count(ask) / len(ASKS):.0f} %" for ask in dict.fromkeys(ASKS)}
    arms = "\n".join(f"| `{arm}` | {what} |" for arm, what in ARMS.items())
    return [
        "# Does an image's declared name carry, whatever its place?",
        "Written by `python benchmarks/study/references.py`. On the rendered world, from the shipped base, a LLaVA\n"
        "of a million parameters that was never shown two pictures at once. One base model, one kind of picture.",
        f"Rows show two pictures that no other row shows, each introduced by its name (`declare_references`, after\n"
        f"MMICL): {kinds['describe']} ask to describe one of them by its name, {kinds['which']} in which picture an\n"
        f"object is. {NUM_ROWS:,} rows, {steps:,} steps of {ROWS_PER_STEP}, next-token alone, LoRA of rank "
        f"{LORA_RANK} on the\nlanguage model, projector and output layer whole. Learning rate and length are those of "
        "a trial\nwith descriptions alone; nothing was chosen by a look at the test.",
        f"| arm | what it trains for |\n|---|---|\n{arms}",
        "Asked of test scenes, each question twice: with the pictures in the order of their names (*first*) and the\n"
        "other way round (*turned*), which changes no answer. Right is what has more probability than what is true\n"
        "of the other picture, so a guess has 50 %. *Both* is right in both orders: of guesses a quarter, but half\n"
        "of the answers of who always says the same name. *Equal* is the same answer in both. Per cent, with 95 %\n"
        "intervals over 3 seeds and rows.",
    ]


def _table(found: Mapping[str, Sequence[Mapping[str, Any]]], ask: str) -> str:
    lines = [
        f"## {ask}: {QUESTIONS[ask]}\n",
        f"| {' | '.join(('arm', *METRICS))} |",
        "|---" * (len(METRICS) + 1) + "|",
    ]
    for arm, own in found.items():
        lines.append(_line(arm, [interval(columns_of(own, f"{ask}/{metric}")) for metric in METRICS]))
    if "declared" in found and CONTROL in found:
        pairs = [[columns_of(found[arm], f"{ask}/{metric}") for arm in ("declared", CONTROL)] for metric in METRICS]
        differences = [paired_interval(own, other) for own, other in pairs]
        lines.append(_line(f"declared - {CONTROL}", differences, "+"))
    return "\n".join(lines)


def _line(name: str, cells: Sequence[Interval], sign: str = "") -> str:
    written = (f"{100 * c.value:{sign}.1f} ({100 * c.low:{sign}.1f}, {100 * c.high:{sign}.1f})" for c in cells)
    return f"| {' | '.join((name, *written))} |"
