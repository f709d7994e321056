"""Finished runs, and what is chosen from them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from methods import CLEAN, Arm, arms

SEEDS = (0, 1, 2)
LEARNING_RATES = (4e-3, 1e-3)


class Run(NamedTuple):
    """What decides a run's result."""

    condition: str
    method: str
    next_token: bool
    replay: bool
    learning_rate: float
    seed: int

    @property
    def arm(self) -> Arm:
        """Its arm."""
        return Arm(self.method, self.next_token, self.replay)


class Records:
    """The lines of `runs.jsonl`, by what decides a run; a line that a kill cut short is left out."""

    def __init__(self, path: Path, kind: Callable[..., Any] = Run) -> None:
        self.path, self.kind = path, kind
        self.found: dict[Any, dict[str, Any]] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            self._keep(record)

    def add(self, record: dict[str, Any]) -> None:
        """One more finished run."""
        self._keep(record)
        cut = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            # A line that a kill cut short ends here.
            file.write(("\n" if cut else "") + json.dumps(record, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def get(self, run: Any) -> dict[str, Any] | None:
        """The record of a run, if it is finished."""
        return self.found.get(run)

    def best(self, tried: Mapping[float, Any], score: Callable[[Mapping[str, Any]], float]) -> float | None:
        """The learning rate whose run has the best score, the first of equals; None while one has not been tried."""
        found = {rate: self.get(run) for rate, run in tried.items()}
        known = {rate: score(record) for rate, record in found.items() if record is not None}
        return max(known, key=known.__getitem__) if len(known) == len(tried) else None

    def _keep(self, record: dict[str, Any]) -> None:
        own = record["run"]
        self.found["base" if own == "base" else self.kind(**own)] = record


def run_of(condition: str, arm: Arm, rate: float, seed: int) -> Run:
    """A run of an arm."""
    return Run(condition, arm.method, arm.next_token, arm.replay, rate, seed)


def chosen_rate(records: Records, condition: str, arm: Arm) -> float | None:
    """The learning rate with the best validation score, or None while one has not been tried."""
    tried = {rate: run_of(*chosen_on(condition, arm), rate, SEEDS[0]) for rate in LEARNING_RATES}
    return records.best(tried, lambda record: record["validation"]["score"])


def chosen_on(condition: str, arm: Arm) -> tuple[str, Arm]:
    """Where the rate of an arm is chosen: its method with replay alone on clean pairs, if that is one of the arms."""
    plain = Arm(arm.method)
    return (CLEAN, plain) if plain in arms(CLEAN) else (condition, arm)
