"""The rows of the discriminative study: the same for every arm, in an order that the seed decides."""

from __future__ import annotations

from functools import cache
from typing import Any

import datasets

import discriminative_arms as settings
from discriminative_arms import CAPTIONS, REPLAY, SHORT_INSTRUCTION, Arm, Run, order, steps_of
from mllm_align.data.world import caption_rows, instruction_rows

COLUMNS = ("id", "source", "image", "prompt", "caption", "chosen", "negatives")


@cache
def captions() -> list[dict[str, Any]]:
    """Pictures with a short caption and a false one, the first of them with a long one; made once in a process."""
    rows = [{**row, "source": CAPTIONS} for row in caption_rows(settings.NUM_CAPTIONS, 0, num_negatives=1)]
    short = [{name: value for name, value in row.items() if name != "chosen"} for row in rows[settings.NUM_LONG :]]
    return rows[: settings.NUM_LONG] + short


@cache
def table(predicted: bool = False) -> datasets.Dataset:
    """The captions, and behind them instruction rows with the prior and its noise, as the base was trained on.

    Args:
        predicted: Whether rows without a long caption predict their short one.
    """
    replay = [{**row, "source": REPLAY} for row in instruction_rows(settings.NUM_REPLAY, 0)]
    own = [_predicting(row) for row in captions()] if predicted else captions()
    rows = [{name: row.get(name) for name in COLUMNS} for row in [*own, *replay]]
    return datasets.Dataset.from_list(rows)


def _predicting(row: dict[str, Any]) -> dict[str, Any]:
    return row if "chosen" in row else {**row, "chosen": row["caption"], "prompt": SHORT_INSTRUCTION}


def caption_order(run: Run) -> list[list[int]]:
    """By step the captions of a run, first those with a long one; two runs with one seed have the same."""
    both, steps = settings.LONG_PER_STEP, steps_of(run)
    first = order(run.seed, steps, settings.NUM_LONG, both, "long captions")
    rest = settings.NUM_CAPTIONS - settings.NUM_LONG
    then = order(run.seed, steps, rest, settings.CAPTIONS_PER_STEP - both, CAPTIONS)
    return [own + [settings.NUM_LONG + row for row in more] for own, more in zip(first, then, strict=True)]


def training_rows(run: Run, arm: Arm) -> tuple[datasets.Dataset, int]:
    """All rows of a run in order, and how many make a step; without contrast only those that are predicted."""
    per_step = settings.CAPTIONS_PER_STEP if arm.contrast or arm.captions else settings.LONG_PER_STEP
    steps = [step[:per_step] for step in caption_order(run)]
    if arm.replay:
        replayed = arm.replay * settings.REPLAY_PER_STEP
        more = order(run.seed, steps_of(run), settings.NUM_REPLAY, replayed, REPLAY)
        steps = [own + [settings.NUM_CAPTIONS + row for row in other] for own, other in zip(steps, more, strict=True)]
        per_step += replayed
    return table(arm.captions).select([row for step in steps for row in step]), per_step
