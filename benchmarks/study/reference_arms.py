"""The arms of the study of named pictures: the same rows and steps, pictures in any order or always in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

SEEDS = (0, 1, 2)
STEPS, ROWS_PER_STEP, NUM_ROWS = 2500, 32, 20000
LEARNING_RATE = 3e-3
LORA_RANK, LORA_ALPHA = 32, 64
# What rows ask, by turns: of one word of answer in three tokens little is learned.
ASKS = ("describe",)
BASE, CONTROL = "base", "in_order"
ARMS: Mapping[str, str] = {
    BASE: "nothing; it was never shown two pictures, nor these names",
    "declared": "pictures are introduced by their names, in an order that is drawn for each row",
    CONTROL: "the control: pictures are introduced by their names, the first always first",
}


class Run(NamedTuple):
    """What decides a run's result."""

    arm: str
    seed: int
    steps: int


def base_run() -> Run:
    """The base, untrained, as a run of no steps."""
    return Run(BASE, 0, 0)
