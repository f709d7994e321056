"""The features of regions of a trained model, row by row, and the numbers that are made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from mllm_align.contract import Signals
from mllm_align.data.collator import AlignCollator
from mllm_align.families import family_of, unwrap
from mllm_align.objectives import RegionContrast
from mllm_align.signals import measure
from mllm_align.trainers.setup import NeedsOfSources
from mllm_align.vision import RegionWeights


class Part(NamedTuple):
    """One number per unit, and the cluster of each."""

    values: list[float]
    clusters: list[str]


def measured(
    model: Any, processor: Any, objective: RegionContrast, rows: Sequence[Mapping[str, Any]], batch_size: int = 50
) -> Iterator[tuple[Any, Signals]]:
    """Batch by batch what the objective needs of some rows, without gradients.

    Args:
        model: As it is, put into evaluation mode.
        processor: Its processor.
        objective: Whose features are measured.
        rows: With `objects`.
        batch_size: Rows at a time.
    """
    hf = unwrap(model)
    family = family_of(hf)
    collator = AlignCollator(
        processor,
        NeedsOfSources(objective),
        family.image_keys,
        family.token_keys,
        region_weights=RegionWeights(family, processor.image_processor, hf.config),
    )
    model.eval()
    for start in range(0, len(rows), batch_size):
        batch = collator(rows[start : start + batch_size])["batch"].to(hf.device)
        with torch.no_grad():
            signals, _ = measure(model, batch, features=objective.needs.features)
        yield batch, signals
