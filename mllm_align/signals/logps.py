"""Log-probabilities of response tokens: the vocabulary head only where one is predicted, a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]


def token_logps(
    head: Head, hidden: Tensor, targets: Tensor, chunk_size: int = 256, *, head_trains: bool = True
) -> Tensor:
    """(N,) float32 log-probability of each target token; logits never outlive their chunk.

    Args:
        head: Maps hidden states (n, d) to logits (n, V), each row on its own.
        hidden: (N, d) hidden states at the positions that predict the targets.
        targets: (N,) token ids.
        chunk_size: Positions whose logits exist at one time.
        head_trains: Whether the head's own parameters need gradients. If not, what the backward pass needs of the
            head is computed beside the log-probability, from the same logits; else the logits of each chunk are
            computed again there.
    """
    if not (torch.is_grad_enabled() and (hidden.requires_grad or head_trains)):
        chunks = zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True)
        return (
            torch.cat([_of_chunk(head, *chunk) for chunk in chunks]) if len(targets) else hidden.new_zeros(0).float()
        )
    if not head_trains:
        return _FrozenHead.apply(head, hidden, targets, chunk_size)
    if len(targets) <= chunk_size:
        return _of_chunk(head, hidden, targets)
    chunks = zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True)
    return torch.cat([checkpoint(_of_chunk, head, *chunk, use_reentrant=False) for chunk in chunks])


def _of_chunk(head: Head, states: Tensor, targets: Tensor) -> Tensor:
    return -F.cross_entropy(head(states).float(), targets, reduction="none")


class _FrozenHead(torch.autograd.Function):
    """A token's log-probability depends on its own hidden state alone, so its gradient is one row, times a number
    that is known later: d logp_i / d h_i is computed with logp_i, and the backward pass scales it."""

    @staticmethod
    def forward(ctx: Any, head: Head, hidden: Tensor, targets: Tensor, chunk_size: int) -> Tensor:
        values, slopes = [], []
        for states, ids in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True):
            with torch.enable_grad():
                leaf = states.detach().requires_grad_()
                logps = _of_chunk(head, leaf, ids)
                slopes.append(torch.autograd.grad(logps.sum(), leaf)[0])
            values.append(logps.detach())
        ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return None, slopes * grad.unsqueeze(1).to(slopes.dtype), None, None


def sum_by(values: Tensor, group: Tensor, size: int) -> Tensor:
    """(size,) sums of `values` (N,) by their `group` (N,), differentiable."""
    return torch.zeros(size, dtype=values.dtype, device=values.device).index_add(0, group, values)
