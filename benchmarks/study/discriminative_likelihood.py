"""Hard negatives told apart by what the model would say, alone and beside its vectors."""

from __future__ import annotations

from typing import Any

from answer_losses import losses
from discriminative_arms import SHORT_INSTRUCTION
from discriminative_evaluation import Part, by_kind, margins, negatives
from mllm_align_eval.similarity import Encoder

LIKELIHOOD, TOGETHER = "likelihood/", "together/"


def likelihood_parts(encoder: Encoder, scale: float | None, model: Any, processor: Any) -> dict[str, Part]:
    """By kind whether a picture's caption is the more probable, and whether it is by that and the vectors together.

    What a caption costs behind the picture is a logarithm of a probability, and so is what the contrast multiplies
    cosines by: they are added as they are, with no weight that would have to be chosen.

    Args:
        encoder: Of the model.
        scale: What the contrast multiplies cosines by; None where none trained them.
        model: The model.
        processor: Its processor.
    """
    rows = negatives()
    true, false = (
        losses(model, processor, [{**row, "prompt": SHORT_INSTRUCTION, "chosen": text} for row, text in own]).nats
        for own in ([(row, row["caption"]) for row in rows], [(row, row["negatives"][0]) for row in rows])
    )
    said = [other - own for own, other in zip(true, false, strict=True)]
    found = by_kind(LIKELIHOOD, rows, said)
    if scale is None:
        return found
    both = [scale * float(margin) + own for margin, own in zip(margins(encoder, rows), said, strict=True)]
    return found | by_kind(TOGETHER, rows, both)
