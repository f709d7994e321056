"""Targets that a slower copy of the model softens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_contrast(similarities: Tensor, slow: Tensor, own: Tensor, counts: Tensor, share: float) -> Tensor:
    """Cross-entropy to a mixture of the right key and what a slower model finds, as ALBEF's contrast (Li et al., 2021)

    https://arxiv.org/abs/2107.07651: the target is (1 - share) times one at the right key plus share times the softmax
    of the slow model's similarities.

    Args:
        similarities: (N, M) scaled similarities of anchors to keys.
        slow: (N, M) the same of the slow model's anchors, on the same scale; no gradient goes there.
        own: (N,) int64, the right key of each anchor.
        counts: (N, M) bool, the keys that take part; the right one must.
        share: From 0 to 1.

    Returns:
        (N,) losses.
    """
    hidden = torch.finfo(similarities.dtype).min
    log_p = F.log_softmax(similarities.masked_fill(~counts, hidden), dim=1)
    target = slow.detach().masked_fill(~counts, hidden).softmax(dim=1)
    right = log_p.gather(1, own[:, None]).squeeze(1)
    # A key that is left out has no share of the target, and a log-probability that is no number of use.
    softened = (target * log_p.masked_fill(~counts, 0)).sum(dim=1)
    return -((1 - share) * right + share * softened)
