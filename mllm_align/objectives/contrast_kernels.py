"""From similarities and masks of positives and negatives to losses: the kernels of all contrastive objectives.

They know neither images nor texts: rows are anchors, columns are keys, and what is a positive or a negative of what is
decided by who calls them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def takes_part(weight: Tensor, negative: Tensor) -> Tensor:
    """(N,) bool: anchors that have a positive, and a negative besides.

    Args:
        weight: (N, M) of positives, as for `softmax_contrast`.
        negative: (N, M) bool.
    """
    positive = weight > 0
    return positive.any(dim=1) & ((negative & ~positive).any(dim=1) | (negative.sum(dim=1) > 1))


def softmax_contrast(similarities: Tensor, weight: Tensor, negative: Tensor, *, decoupled: bool = False) -> Tensor:
    """InfoNCE with weighted positives, each against all negatives.

    The loss of anchor i is sum_p w_ip (log Z_ip - s_ip) / sum_p w_ip, and Z_ip is the sum of exp(s) over the negatives
    and p itself. So with w of 0 and 1

    - one positive is InfoNCE (van den Oord et al., 2018), https://arxiv.org/abs/1807.03748;
    - several are L_out of Khosla et al. (2020), https://arxiv.org/abs/2004.11362, less the other positives in the
      denominator;
    - `decoupled` leaves p out of Z: DCL (Yeh et al., 2022), https://arxiv.org/abs/2110.06848, without its weighting
      function;

    and with w from 0 to 1 and every key a negative, too, it is CWCL (Srinivasa et al., 2023),
    https://arxiv.org/abs/2309.14580, for which `continuous_weights` gives w.

    Args:
        similarities: (N, M) scaled similarity of each anchor (rows) to each key (columns).
        weight: (N, M) of each positive, bool or from 0 up; 0 for what is none.
        negative: (N, M) bool.
        decoupled: Whether a positive that is no negative is left out of its own denominator; the loss may then be
            below zero.

    Returns:
        (N,) losses; 0 where an anchor lacks positives or negatives (`takes_part`).
    """
    weight = weight.to(similarities.dtype)
    hidden = torch.finfo(similarities.dtype).min
    others = similarities.masked_fill(~negative, hidden).logsumexp(dim=1, keepdim=True)
    above = others - similarities
    losses = above if decoupled else torch.where(negative, above, F.softplus(above))
    anchors = takes_part(weight, negative)
    # Selected before they are multiplied: where there is no negative at all, what is above is no number.
    losses = torch.where((weight > 0) & anchors[:, None], losses, 0.0) * weight
    total = weight.sum(dim=1)
    return losses.sum(dim=1) / torch.where(total > 0, total, 1.0)


def continuous_weights(keys: Tensor) -> Tensor:
    """(N, N) weights of CWCL: half the cosine of two keys plus a half, without a gradient.

    Args:
        keys: (N, d) features of the keys, which the paper takes of a frozen encoder. Hidden states of a language model
            point to one side: their cosines are all near 1, and so are these weights.
    """
    unit = F.normalize(keys.detach(), dim=1)
    return (unit @ unit.T).clamp(-1, 1) / 2 + 0.5


def sigmoid_contrast(logits: Tensor, positive: Tensor, negative: Tensor, negative_weight: float) -> Tensor:
    """A yes or no for each pair, as Detic's caption loss in CLIM (Wu et al., 2024), https://arxiv.org/abs/2312.11376

    Positives of an anchor count for 1 together, each negative for `negative_weight`.

    Args:
        logits: (N, M) scaled similarity plus bias.
        positive: (N, M) bool.
        negative: (N, M) bool, nowhere where `positive` is.
        negative_weight: Of each.

    Returns:
        (N,) sums over keys; 0 where an anchor has no positive.
    """
    share = positive / positive.sum(dim=1, keepdim=True).clamp(min=1)
    weight = share.to(logits.dtype) + negative_weight * negative
    losses = weight * F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="none")
    return torch.where(positive.any(dim=1), losses.sum(dim=1), 0.0)
