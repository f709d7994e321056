"""From the records of the discriminative study to columns, intervals and what they are written as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from discriminative_arms import ARMS, SEEDS, UNTRAINED, Run, untrained
from discriminative_evaluation import IMAGE_TO_TEXT, LOSSES, NEGATIVES, TEXT_TO_IMAGE
from intervals import Columns, Interval, interval, paired_interval
from mllm_align.data.world.statements import NEGATIVE_KINDS
from records import Records

RECALL: Mapping[str, tuple[tuple[str, ...], int]] = {
    "R@1": ((IMAGE_TO_TEXT, TEXT_TO_IMAGE), 1),
    "R@1 image to text": ((IMAGE_TO_TEXT,), 1),
    "R@1 text to image": ((TEXT_TO_IMAGE,), 1),
    "R@5": ((IMAGE_TO_TEXT, TEXT_TO_IMAGE), 5),
}
WAYS = ("swap", "replace", "add")
GROUPS: Mapping[str, tuple[str, ...]] = {
    **{way: tuple(kind for kind in NEGATIVE_KINDS if kind.startswith(way)) for way in WAYS},
    "hard negatives": NEGATIVE_KINDS,
    **{kind: (kind,) for kind in NEGATIVE_KINDS},
}
Found = Mapping[str, Sequence[dict[str, Any]]]


def finished(records: Records, steps: int) -> dict[str, list[dict[str, Any]]]:
    """By arm the records of all seeds at one learning rate; arms that lack one are left out, the base is first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in untrained():
        record = records.get(run)
        if record is not None:
            found[run.arm] = [record]
    for arm in ARMS:
        own = [run for run in records.found if isinstance(run, Run) and run.arm == arm and run.steps == steps]
        for rate in dict.fromkeys(run.learning_rate for run in own):
            seeds = [records.get(Run(arm, rate, seed, steps)) for seed in SEEDS]
            if None not in seeds:
                found[arm] = [record for record in seeds if record is not None]
    return found


def columns_of(own: Sequence[dict[str, Any]], metric: str, reading: str = NEGATIVES) -> Columns | None:
    """What the runs of an arm gave for one metric; None where it cannot be asked for it.

    Args:
        own: Their records.
        metric: Its name.
        reading: Of hard negatives, what they are told apart by.
    """
    parts = [_column(record["test"], metric, reading) for record in own]
    found = [part for part in parts if part is not None]
    if not found:
        return None
    values, base = (np.array([part[place] for part in found], dtype=np.float64) for place in (0, 1))
    return Columns(values, base, found[0][2])


def _column(test: Mapping[str, Any], metric: str, reading: str) -> tuple[list[float], list[float], list[str]] | None:
    values: list[float] = []
    base: list[float] = []
    clusters: list[str] = []
    names, at = (metric,), None
    if metric in RECALL:
        names, at = RECALL[metric]
    elif metric in GROUPS:
        names = tuple(reading + kind for kind in GROUPS[metric])
    for name in names:
        if name not in test:
            return None
        part = test[name]
        given = part["values"] if at is None else [float(rank <= at) for rank in part["values"]]
        # Both directions are about the same pictures; kinds of negatives have pictures of their own.
        place = "" if metric in RECALL else name.removeprefix(reading)
        clusters += [f"{place}{number}" for number in part.get("clusters", range(len(given)))]
        values += given
        base += part.get("base", [1.0] * len(given))
    return values, base, clusters


def cell(found: Found, arm: str, metric: str, reading: str = NEGATIVES) -> str:
    """A value with its interval, or nothing where an arm has no such metric."""
    column = columns_of(found[arm], metric, reading)
    return "" if column is None else written(interval(column), metric)


def difference(
    found: Found, arm: str, other: str, metric: str, readings: tuple[str, str] = (NEGATIVES, NEGATIVES)
) -> Interval | None:
    """One arm minus another on the same units; None where one of them has no such metric."""
    own, against = (
        columns_of(found[name], metric, reading) if name in found else None
        for name, reading in zip((arm, other), readings, strict=True)
    )
    return None if own is None or against is None else paired_interval(own, against)


def written(value: Interval, metric: str, sign: str = "") -> str:
    """Per cent, or points; losses in nats a token."""
    scale, form = (1, f"{sign}.3f") if metric in LOSSES else (100, f"{sign}.1f")
    return f"{scale * value.value:{form}} ({scale * value.low:{form}}, {scale * value.high:{form}})"


def trains(arm: str) -> bool:
    """Whether an arm trains anything."""
    return arm not in UNTRAINED
