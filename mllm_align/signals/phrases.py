"""What regions are called, as features: each distinct text of a batch is read once, in a pass without an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mllm_align.contract import Batch, Feature, Ragged
from mllm_align.signals.features import PHRASE_TOKENS, PHRASES, image_feature_rows, phrases_told
from mllm_align.signals.packing import send
from mllm_align.signals.plan import Group
from mllm_align.signals.scoring import Measured


def phrase_features(
    model: Any, batch: Batch, groups: Sequence[Group], measured: Sequence[Measured], features: Sequence[Feature]
) -> dict[str, tuple[Ragged, list[int]]]:
    """Of each region on the images of a column the last state of its text, all states of it, or the last states of
    those that are false of it or say the same, and the rows once more on the host.

    Args:
        model: The unwrapped Hugging Face model; asked for its width.
        batch: With `phrases`, and which of them are of which region.
        groups: As planned for `features`.
        measured: What each of them gave.
        features: Those of texts of regions are looked at.

    Returns:
        Per feature (R, d) float32, zero where a region has no text; or one entry for each state, or for each text of a
        list. A column without any has no entry.
    """
    told = {feature: phrases_told(batch, feature) for feature in features if feature.of_phrases}
    wanted = {feature: own for feature, own in told.items() if own is not None}
    if not wanted:
        return {}
    pools = [(pool, each) for group, each in zip(groups, measured, strict=True) for pool in group.pools]
    own = [(pool.rows, each.pooled[pool.name]) for pool, each in pools if pool.name == PHRASES.name]
    words = [(pool.rows, each.pooled[pool.name]) for pool, each in pools if pool.name == PHRASE_TOKENS.name]
    width = model.config.get_text_config().hidden_size
    nothing = torch.zeros(1, width, device=model.device)
    joined = torch.cat([nothing, *(values for _, values in own)])
    # Where each phrase came to lie; behind them, for regions without a text, the zeros.
    place = np.zeros(len(batch.phrases) + 1, dtype=np.int64)
    for number, phrase in enumerate(phrase for rows, _ in own for phrase in rows):
        place[phrase] = number + 1
    spread: dict[int, list[int]] = {}
    for number, phrase in enumerate(phrase for rows, _ in words for phrase in rows):
        spread.setdefault(phrase, []).append(number)
    found = {}
    for feature, own_phrases in wanted.items():
        rows = image_feature_rows(batch, feature)
        if rows and feature.pooling == "region_tokens":
            every = torch.cat([values for _, values in words])
            index = np.array([number for phrase in own_phrases for number in spread.get(phrase, ())], dtype=np.int64)
            values = every[send(index, every.device)]
            found[feature.name] = Ragged(values, send(np.array(rows), values.device)), rows
        elif rows:
            index = place[np.array(own_phrases, dtype=np.int64)]
            values = joined[send(index, joined.device)]
            found[feature.name] = Ragged(values, send(np.array(rows), values.device)), rows
    return found
