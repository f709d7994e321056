"""From what the engine has measured to vectors: through a head where there is one, those of a row's tokens as one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mllm_align.contract import EmbeddingHead, Feature, Signals
from mllm_align.families import unwrap


def entry_vectors(signals: Signals, feature: Feature, head: EmbeddingHead | None) -> tuple[list[int], Tensor]:
    """The vectors of a feature's entries; of tokens those of a row are one.

    Args:
        signals: What was measured, some of this feature.
        feature: Which.
        head: That follows; None for none.

    Returns:
        The row of each, in order; and (N, d) vectors in float32 at least, not of unit length.

    Raises:
        ValueError: If there are tokens, and no head to pool them.
    """
    measured = signals.features[feature.name].values
    values = measured.to(torch.promote_types(measured.dtype, torch.float32))
    rows = signals.host_feature_rows[feature.name]
    if feature.pooling != "tokens":
        return list(rows), values if head is None else head(values)
    if head is None:
        raise ValueError(f"the embedding of column {feature.column!r} is of all tokens: no head to pool them")
    own, counts = np.unique(rows, return_counts=True)
    sizes = counts.tolist()
    there = torch.arange(max(sizes), device=values.device) < torch.tensor(sizes, device=values.device)[:, None]
    return own.tolist(), head(pad_sequence(list(values.split(sizes)), batch_first=True), there)


def vector_width(model: nn.Module, head: EmbeddingHead | None) -> int:
    """Numbers of a vector: of the head, or of the model's own states."""
    if head is not None:
        return head.options["dim"] or head.options["width"]
    return unwrap(model).config.get_text_config().hidden_size


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and as before when it ends."""
    before = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in before:
            module.training = True
