"""The arms of the mixing study: the same rows and steps, without a mixer and with each, beside two towers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

Spec = dict[str, Any]

CONTROL = "no_mixer"
SEEING, BLIND, MASKED = "seeing", "blind", "masked"
# Where the first stage of X-Former is, beside the towers.
QUERIES = "queries"
STAGED = "x_former_staged"
SEEDS = (0, 1, 2)
LEARNING_RATES = (2e-3, 1e-3)
TUNED = "gated"  # the arm whose validation chooses the learning rate of all
STEPS, BATCH = 300, 32
# The arms that hardly found colour in these steps, and their control, have a second go: more steps, half of the rows
# captions, each with the learning rate that its own validation chooses.
LONG_STEPS = 1200
LONG_ARMS = (CONTROL, "interleave", "sva", "x_former", STAGED)
# Of the steps of a mixer that changes the model from the start: those in which only it and the projector train.
STAGE_1 = 0.25
# A third of the questions ask for colour; a caption names all that a picture has.
QUESTIONS = ("colour", "existence", "size", "colour", "side", "relation")
WITH_CAPTIONS = tuple(each for kind in QUESTIONS for each in (kind, "caption"))

# The options of each kind at this size: one patch of the further tower lies in each cell.
MIXERS: Mapping[str, Spec] = {
    "additive": {},
    "interleave": {},
    "concat": {},
    "gated": {},
    "window": {"window": 1},
    "sva": {"width": 128, "heads": 4, "depth": 1},
    "x_former": {"num_queries": 16, "width": 96, "depth": 2, "heads": 4},
}
# In longer runs SVA has as many layers as Cambrian-1's: with one it did not come to look at the further tower.
LONG_OPTIONS: Mapping[str, Spec] = {"sva": {"depth": 3}}
# Of X-Former where it has its own first stage: a Q-Former that reads the picture twice, and the autoencoder's patches.
STAGED_OPTIONS: Spec = {"depth": 4, "detail_cells": [8, 8]}
# They make the tokens themselves: nothing reads the projector any more, so it does not train.
WITHOUT_PROJECTOR = ("sva", "x_former")


class Run(NamedTuple):
    """What decides a run's result."""

    arm: str
    learning_rate: float
    seed: int
    steps: int


BASE = Run("base", 0.0, 0, 0)


def tuned_on(arm: str, steps: int) -> str:
    """The arm whose validation chooses the learning rate of an arm."""
    return arm if steps == LONG_STEPS else TUNED


class Arm(NamedTuple):
    """A mixer, which tower it mixes in, and whether it had a first stage of its own; none of this in the control."""

    kind: str | None = None
    tower: str = SEEING
    staged: bool = False


# The capacity controls mix in the blind tower once more: the same parameters and tokens, nothing new to see.
ARMS: Mapping[str, Arm] = {
    CONTROL: Arm(),
    "gated": Arm("gated"),
    "gated_blind": Arm("gated", BLIND),
    "concat": Arm("concat"),
    "interleave": Arm("interleave"),
    "additive": Arm("additive"),
    "window": Arm("window"),
    "sva": Arm("sva"),
    "x_former": Arm("x_former"),
    "interleave_blind": Arm("interleave", BLIND),
    STAGED: Arm("x_former", MASKED, staged=True),
}
SHORT_ARMS = tuple(name for name in ARMS if name != STAGED)


def twin(arm: str) -> str | None:
    """The arm with the same mixer and the blind tower, where there is one."""
    return next((name for name, each in ARMS.items() if each == Arm(ARMS[arm].kind, BLIND) and name != arm), None)


def mixer_of(arm: str, towers: Mapping[str, str], steps: int = STEPS) -> Spec | None:
    """The `mixer` of an arm as a recipe says it; None for the control.

    Args:
        arm: One of `ARMS`.
        towers: The folder of each tower, and of the first stage.
        steps: Of the run.
    """
    kind, tower, staged = ARMS[arm]
    if kind is None:
        return None
    options = MIXERS[kind] | (LONG_OPTIONS.get(kind, {}) if steps == LONG_STEPS else {})
    if staged:
        options |= STAGED_OPTIONS | {"weights": towers[QUERIES]}
    return {"kind": kind, "encoders": [{"model": towers[tower], "train": "frozen"}], **options}
