"""The arms of the study of named pictures: the same questions and steps, pictures in other orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

SEEDS = (0, 1, 2)
STEPS, ROWS_PER_STEP = 1600, 32
LEARNING_RATE = 1e-3
LORA_RANK, LORA_ALPHA = 32, 64
BY_LOOKS = "which by looks"
BASE, STAGED, CONTROL, DRAWN = "base", "staged", "in_order", "drawn"
ARMS: Mapping[str, str] = {
    BASE: "nothing; it was never shown two pictures, nor these names",
    STAGED: "first the pictures are in the order of their names, then three times of four, then in either",
    CONTROL: "the control: they are always in the order of their names",
    DRAWN: "they are in either order from the beginning",
}


class Stage(NamedTuple):
    """A part of the training.

    Attributes:
        share: Of the steps.
        asks: What rows ask, by turns.
        ordered: Of `staged`, the share of rows that surely have the pictures in the order of their names; of the
            others half have, by chance.
    """

    share: float
    asks: Sequence[str]
    ordered: float


STAGES = (Stage(0.25, ("look",), 1.0), Stage(0.25, ("look",), 0.5), Stage(0.5, ("look", "describe"), 0.0))


class Run(NamedTuple):
    """What decides a run's result."""

    arm: str
    seed: int
    steps: int


def base_run() -> Run:
    """The base, untrained, as a run of no steps."""
    return Run(BASE, 0, 0)


def ordered(arm: str, stage: Stage) -> float:
    """The share of a stage's rows that surely have the pictures in the order of their names."""
    return {STAGED: stage.ordered, CONTROL: 1.0, DRAWN: 0.0}[arm]
