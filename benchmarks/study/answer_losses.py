"""What a model pays for texts that no training showed it: nats, and the tokens that they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from mllm_align.contract import Needs, View
from mllm_align.data.collator import AlignCollator
from mllm_align.families import family_of, unwrap
from mllm_align.models import soft_prompts_of
from mllm_align.signals import measure

BATCH = 100
OWN = View("image", "chosen")


class Losses(NamedTuple):
    """By row: nats, tokens, and the row's id."""

    nats: list[float]
    tokens: list[float]
    ids: list[str]


@torch.no_grad()
def losses(model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> Losses:
    """By row the negative log-probability of its `chosen` on its image, and how many tokens that has.

    Args:
        model: As it is, put into evaluation mode.
        processor: Its processor.
        rows: With `image`, `prompt` and `chosen`.
    """
    hf, soft = unwrap(model), soft_prompts_of(model)
    family, needs = family_of(hf), Needs(views=(OWN,))
    replace = None if soft is None else soft.replace
    collator = AlignCollator(processor, lambda _: needs, family.image_keys, family.token_keys, replace=replace)
    model.eval()
    found = Losses([], [], [str(row["id"]) for row in rows])
    for start in range(0, len(rows), BATCH):
        batch = collator(rows[start : start + BATCH])["batch"].to(hf.device)
        signals, _ = measure(model, batch)
        found.nats.extend((-signals.logps[OWN]).tolist())
        found.tokens.extend(signals.num_tokens[OWN].float().tolist())
    return found
