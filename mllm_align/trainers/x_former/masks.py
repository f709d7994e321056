"""Which of the Q-Former's tokens see which, in each of BLIP-2's three tasks; queries come first, then words."""

from __future__ import annotations

import torch
from torch import Tensor


def unimodal(num_queries: int, words: Tensor) -> Tensor:
    """(B, Q + L, Q + L) bool for image-text contrast: queries see queries, words see words.

    Args:
        num_queries: Q.
        words: (B, L) bool, False for padding, which nothing sees.
    """
    mask = bidirectional(num_queries, words)
    mask[:, :num_queries, num_queries:] = False
    mask[:, num_queries:, :num_queries] = False
    return mask


def bidirectional(num_queries: int, words: Tensor) -> Tensor:
    """(B, Q + L, Q + L) bool for image-text matching: all see all but padding.

    Args:
        num_queries: Q.
        words: (B, L) bool, False for padding.
    """
    seen = torch.cat([words.new_ones(len(words), num_queries), words], dim=1)
    return seen[:, None, :].repeat(1, seen.shape[1], 1)


def causal(num_queries: int, words: Tensor) -> Tensor:
    """(B, Q + L, Q + L) bool for generation: queries see queries, a word sees queries, itself and words before it.

    Args:
        num_queries: Q.
        words: (B, L) bool, False for padding, which lies at the end.
    """
    mask = bidirectional(num_queries, words)
    mask[:, :num_queries, num_queries:] = False
    mask[:, num_queries:, num_queries:] &= torch.ones(
        words.shape[1], words.shape[1], dtype=torch.bool, device=words.device
    ).tril()
    return mask
