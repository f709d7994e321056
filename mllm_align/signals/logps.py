"""Log-probabilities of response tokens: the vocabulary head only where one is predicted, a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def token_logps(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, chunk_size: int = 1024) -> Tensor:
    """(N,) float32 log-probability of each target token.

    Args:
        head: Maps hidden states (n, d) to logits (n, V).
        hidden: (N, d) hidden states at the positions that predict the targets.
        targets: (N,) token ids.
        chunk_size: Positions whose logits exist at one time. With more positions than this, each chunk's logits are
            computed again in the backward pass instead of being kept.
    """

    def of_chunk(states: Tensor, ids: Tensor) -> Tensor:
        return -F.cross_entropy(head(states).float(), ids, reduction="none")

    if targets.numel() <= chunk_size:
        return of_chunk(hidden, targets)
    keep_small = torch.is_grad_enabled() and hidden.requires_grad
    pieces = []
    for states, ids in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True):
        pieces.append(checkpoint(of_chunk, states, ids, use_reentrant=False) if keep_small else of_chunk(states, ids))
    return torch.cat(pieces)


def sum_by(values: Tensor, group: Tensor, size: int) -> Tensor:
    """(size,) sums of `values` (N,) by their `group` (N,), differentiable."""
    return torch.zeros(size, dtype=values.dtype, device=values.device).index_add(0, group, values)
