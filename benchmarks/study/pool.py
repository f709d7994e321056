"""Runs of a study side by side, each in a process of its own."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any


def work_off(
    missing: Callable[[], Iterable[Any]],
    job: Callable[[Any], Callable[[], dict[str, Any]]],
    finished: Callable[[Any, dict[str, Any]], None],
    *,
    workers: int,
    minutes: float = math.inf,
) -> None:
    """Runs what is missing until nothing is, or the time is up; runs that have begun are waited for.

    Args:
        missing: What is to be done next, the most wanted first; asked again whenever a run has ended, which may decide
            what comes after it.
        job: Of a run, what a process calls: it must survive pickling.
        finished: Keeps the record of a run.
        workers: Runs at a time.
        minutes: After which no run is started.
    """
    until = time.monotonic() + 60 * minutes
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        running: dict[Future[dict[str, Any]], Any] = {}
        while True:
            if time.monotonic() < until:
                for run in missing():
                    if len(running) >= workers:
                        break
                    if run not in running.values():
                        running[pool.submit(job(run))] = run
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                finished(running.pop(future), future.result())
