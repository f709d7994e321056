"""The four losses of X-Former's first stage, as functions of small tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def similarities(queries: Tensor, texts: Tensor, temperature: Tensor) -> Tensor:
    """(N, N) of image (row) and text (column): the cosine of the most similar query, divided by the temperature.

    Args:
        queries: (N, Q, d) of unit length.
        texts: (N, d) of unit length.
        temperature: No dimensions.
    """
    return torch.einsum("iqd,td->iqt", queries, texts).amax(dim=1) / temperature


def contrast_loss(found: Tensor, same: Tensor, smoothing: float = 0.0) -> Tensor:
    """Image-text contrast (ITC): mean cross-entropy, in both directions, of finding the own partner.

    Args:
        found: (N, N) `similarities`.
        same: (N, N) bool, True where two pairs share text or picture: these are no negatives. The diagonal is ignored.
        smoothing: Share of the target that is spread evenly over all candidates, the own one among them.
    """
    own = torch.eye(len(same), dtype=torch.bool, device=same.device)
    left_out = same & ~own
    total = found.new_zeros(())
    for scores in (found, found.T):
        logs = scores.masked_fill(left_out, -torch.inf).log_softmax(dim=1)
        spread = logs.masked_fill(left_out, 0).sum(dim=1) / (~left_out).sum(dim=1)
        total = total - ((1 - smoothing) * logs.diagonal() + smoothing * spread).mean()
    return total / 2


class Negatives(NamedTuple):
    """A wrong partner for each pair: `image` (B,) for its text, `text` (B,) for its image; `there` (B,) bool."""

    image: Tensor
    text: Tensor
    there: Tensor


@torch.no_grad()
def hard_negatives(found: Tensor, same: Tensor, generator: torch.Generator | None = None) -> Negatives:
    """Draws wrong partners, the more often the more similar they are (BLIP, arXiv:2201.12086, section 3.2).

    Args:
        found: (B, B) `similarities`.
        same: (B, B) bool, True where two pairs share text or picture, and on the diagonal: these are never drawn.
        generator: Of the draws.

    Returns:
        Where a pair shares with all others, `there` is False and its draws mean nothing.
    """
    there = (~same).any(dim=1)
    drawn = []
    for scores in (found.T, found):
        # The floor keeps rows whose candidates are all far from the own partner drawable.
        weights = (scores.float().softmax(dim=1) + 1e-4).masked_fill(same, 0)
        weights[~there] = 1
        drawn.append(torch.multinomial(weights, 1, generator=generator)[:, 0])
    return Negatives(drawn[0], drawn[1], there)


def matching_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Image-text matching (ITM): mean cross-entropy of right (1) and wrong (0) pairs.

    Args:
        logits: (P, Q, 2) of each query, over whose mean is decided.
        labels: (P,) int64.
    """
    return F.cross_entropy(logits.float().mean(dim=1), labels)


def generation_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Image-grounded text generation (ITG): mean cross-entropy of the next token.

    Args:
        logits: (B, L, V), of the token after each.
        targets: (B, L) int64, -100 where there is none.
    """
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)


def reconstruction_loss(predicted: Tensor, patches: Tensor, masked: Tensor, *, normalise: bool) -> Tensor:
    """MAE's loss (He et al. 2022, arXiv:2111.06377, section 3): mean squared error on the masked patches alone.

    Args:
        predicted: (B, N, p) pixels of each patch.
        patches: (B, N, p) true ones.
        masked: (B, N), 1 where the encoder did not see the patch.
        normalise: Whether the true ones are first brought to mean 0 and variance 1 in each patch.
    """
    if normalise:
        mean, variance = patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)
        patches = (patches - mean) / (variance + 1e-6).sqrt()
    error = (predicted - patches).square().mean(dim=-1)
    return (error * masked).sum() / masked.sum()
