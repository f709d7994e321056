"""Runs side by side: what ends decides what comes next, nothing runs twice, and no run begins when the time is up."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pool import work_off


def job(run: int) -> Callable[[], dict[str, Any]]:
    return partial(dict, number=run)


def test_what_ends_decides_what_comes_next() -> None:
    kept: dict[int, dict[str, Any]] = {}

    def missing() -> list[int]:
        wanted = [1, 2, 3] if {1, 2} <= set(kept) else [1, 2]
        return [run for run in wanted if run not in kept]

    ended: list[int] = []

    def finished(run: int, record: dict[str, Any]) -> None:
        ended.append(run)
        kept[run] = record

    work_off(missing, job, finished, workers=2)
    assert kept == {run: {"number": run} for run in (1, 2, 3)}
    assert sorted(ended[:2]) == [1, 2]
    assert ended[2:] == [3]


def test_nothing_begins_when_the_time_is_up() -> None:
    kept: list[int] = []
    work_off(lambda: [1], job, lambda run, record: kept.append(run), workers=1, minutes=0)
    assert kept == []
