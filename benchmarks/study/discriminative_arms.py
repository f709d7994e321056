"""The arms of the discriminative study: what each trains for, on the same rows in the same order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from mllm_align.data.world.captions import IMAGE_INSTRUCTION, TEXT_INSTRUCTION
from mllm_align.objectives import Discriminative, InfoNCE, NextToken, Weighted

SEEDS = (0, 1, 2)
STEPS = 600
# Of the captions of a step the first so many rows have a long one, too.
CAPTIONS_PER_STEP, LONG_PER_STEP, REPLAY_PER_STEP = 64, 16, 8
NUM_CAPTIONS, NUM_LONG, NUM_REPLAY = 16000, 4000, 4000
CAPTIONS, REPLAY = "captions", "replay"
TEMPERATURE = 0.07
# Behind it captions that are short are predicted, where they are; those that are long, behind the image's instruction.
SHORT_INSTRUCTION = "Tell me what you see."
LORA_RANK, LORA_ALPHA = 32, 64
# The base read behind the same instructions, by the state at their end and by the mean of all states.
BASE, BASE_LAST = "base", "base_last"
TUNED, DUAL, LONGER, CONTROL, REPLAYED = "both", "dual", "dual_longer", "next_token", "both_more_replay"
# The same with a tower that trains, whole; the control too.
TOWER, TOWER_CONTROL = "both_tower", "next_token_tower"
# The same with images read before the language model, as the tokens that it is given.
TOKENS = "both_tokens"
# The same with short captions predicted, too; and its control.
PREDICTED, PREDICTED_CONTROL = "both_captions", "next_token_captions"
# The same, and the dual encoder, for twice as many steps.
TWICE, DUAL_TWICE = "both_captions_twice", "dual_twice"
# The arms whose validation chooses a learning rate: one for all that train the base by LoRA with a frozen tower, one
# for those whose tower trains, one for dual encoders.
LEARNING_RATES: Mapping[str, Sequence[float]] = {
    TUNED: (5e-3,),
    TOWER: (3e-3,),
    TOKENS: (3e-3,),
    DUAL: (1.5e-3, 7e-4, 3.5e-4),
}
TOWER_RATE = 1e-3  # of the tower itself, where it trains
# With heads on image tokens: their width, and the rate of heads, projector and tower.
HEAD_DIM, HEAD_RATE = 128, 7e-4


class Run(NamedTuple):
    """What decides a run's result."""

    arm: str
    learning_rate: float
    seed: int
    steps: int


class Arm(NamedTuple):
    """What an arm trains for, and how.

    Attributes:
        contrast: Whether pictures and short captions are told apart.
        next_token: Whether long captions are predicted.
        negatives: Whether the contrast has the false captions.
        replay: How many times `REPLAY_PER_STEP` ordinary instruction rows go along, and what they weigh.
        pooling: Of states to a vector.
        soft_prompts: Whether the instructions become vectors that train.
        tower: Whether the base's vision tower trains, whole, at a learning rate of its own.
        tokens: Whether an image is the mean of its tokens as the language model is given them, and both sides have
            linear heads; and the rates of an arm that does so.
        captions: Whether short captions are predicted, too, of rows that have no long one.
        dual: Whether it is a dual encoder that trains, whole, and not the base.
        longer: Its steps in multiples of those of others.
    """

    contrast: bool = True
    next_token: bool = True
    negatives: bool = True
    replay: int = 1
    pooling: str = "mean"
    soft_prompts: bool = False
    tower: bool = False
    tokens: bool = False
    captions: bool = False
    dual: bool = False
    longer: float = 1.0


# A step of the dual encoder takes so many times fewer operations than one of `both` (flops_per_step of the records).
FEWER_OPERATIONS = 1.66
ARMS: Mapping[str, Arm] = {
    TUNED: Arm(),
    DUAL: Arm(next_token=False, replay=0, dual=True),
    LONGER: Arm(next_token=False, replay=0, dual=True, longer=FEWER_OPERATIONS),
    "contrast": Arm(next_token=False),
    CONTROL: Arm(contrast=False),
    TOWER: Arm(replay=8, tower=True),
    TOWER_CONTROL: Arm(contrast=False, replay=8, tower=True),
    TOKENS: Arm(replay=8, tower=True, tokens=True),
    PREDICTED: Arm(replay=8, tower=True, tokens=True, captions=True),
    PREDICTED_CONTROL: Arm(contrast=False, replay=8, tower=True, tokens=True, captions=True),
    TWICE: Arm(replay=8, tower=True, tokens=True, captions=True, longer=2.0),
    DUAL_TWICE: Arm(next_token=False, replay=0, dual=True, longer=2.0),
    "both_soft": Arm(soft_prompts=True),
    REPLAYED: Arm(replay=4),
    "contrast_alone": Arm(next_token=False, replay=0),
    "both_no_negatives": Arm(negatives=False),
    "dual_no_negatives": Arm(next_token=False, replay=0, negatives=False, dual=True),
    "both_last": Arm(pooling="last"),
}
UNTRAINED = {BASE: Arm(), BASE_LAST: Arm(pooling="last")}


def untrained() -> list[Run]:
    """The runs of the base, in which nothing trains."""
    return [Run(name, 0.0, 0, 0) for name in UNTRAINED]


def steps_of(run: Run) -> int:
    """The steps that a run trains for."""
    return round(ARMS[run.arm].longer * run.steps)


def tuned_by(arm: str) -> str:
    """The arm whose learning rate an arm has."""
    if ARMS[arm].dual:
        return DUAL
    if ARMS[arm].tokens:
        return TOKENS
    return TOWER if ARMS[arm].tower else TUNED


def control_of(arm: str) -> str | None:
    """The arm that trains on the same rows at as much replay for as long without a contrast, if there is one."""
    if ARMS[arm].longer > 1:
        return None
    if ARMS[arm].captions:
        return PREDICTED_CONTROL
    return TOWER_CONTROL if ARMS[arm].tower else CONTROL


def rivals_of(arm: str) -> tuple[str, ...]:
    """The dual encoders that an arm is compared with: of equal steps, and of about as many operations as `both`."""
    return (DUAL_TWICE,) if ARMS[arm].longer > 1 else (DUAL, LONGER)


def contrast_options(arm: Arm) -> dict[str, Any]:
    """The options of `InfoNCE` that an arm's contrast has."""
    return {
        "text": "caption",
        "image_prompt": None if arm.tokens else IMAGE_INSTRUCTION,
        "text_prompt": TEXT_INSTRUCTION,
        "pooling": arm.pooling,
        "negatives": arm.negatives,
        "temperature": TEMPERATURE,
        "dim": HEAD_DIM if arm.tokens else None,
    }


def objective_of(arm: Arm) -> tuple[Weighted, Discriminative | InfoNCE | None]:
    """The objective of an arm that trains the base, and the part of it that has an embedding, if one has."""
    contrast: Discriminative | InfoNCE | None = None
    # `Discriminative` has the sum of both directions, of which `InfoNCE` has the mean.
    weight = 1.0
    if arm.contrast and arm.next_token:
        contrast = Discriminative(**contrast_options(arm))
    elif arm.contrast:
        contrast, weight = InfoNCE(**contrast_options(arm)), 2.0
    first = (contrast or NextToken(matched=False), weight, CAPTIONS)
    if not arm.replay:
        return Weighted(first), contrast
    return Weighted(first, (NextToken(matched=False), float(arm.replay), REPLAY)), contrast


def order(seed: int, steps: int, num_rows: int, per_step: int, name: str) -> list[list[int]]:
    """By step the rows that it has; none comes twice before all have come once.

    Args:
        seed: Of the run.
        steps: How many.
        num_rows: To choose from.
        per_step: How many a step has.
        name: Of the rows, so that others come in another order.
    """
    rng, drawn = Random(f"{name}|{seed}"), []
    while len(drawn) < steps * per_step:
        rows = list(range(num_rows))
        rng.shuffle(rows)
        drawn += rows
    return [drawn[start : start + per_step] for start in range(0, steps * per_step, per_step)]
