"""Which pairs of vectors can have a cosine above a bound: an upper bound on every cosine for a part of the products.

In a basis whose first k directions hold most of what the vectors have, a = (a1, a2) and b = (b1, b2) have
cos = a1 b1 + a2 b2 <= a1 b1 + |a2| |b2| (Cauchy-Schwarz): the product of k + 1 numbers instead of d. Any orthonormal
basis gives a bound, so a poor one costs time and never a pair; it is taken from a sample.
"""

from __future__ import annotations

import numpy as np
import torch

KEPT = (32, 64, 128, 256)
SAMPLED = 2048  # vectors that a basis is chosen by
# What settling one pair in float64 costs, in products of two float32 numbers (measured: 1.5 us and 7 ps).
SURVIVOR = 200_000


class Sketch:
    """Vectors as k + 1 numbers whose product is at least the cosine; or themselves, where that saves nothing.

    Args:
        sample: (n, d) vectors that are like those to come.
        above: The bound on the cosine.

    Attributes:
        basis: (d, k) orthonormal, or None for the whole vectors.
    """

    def __init__(self, sample: np.ndarray, above: float) -> None:
        self.basis: torch.Tensor | None = None
        vectors = torch.from_numpy(sample[:SAMPLED])
        if len(vectors) < 2:
            return
        directions = torch.linalg.eigh(vectors.double().T @ vectors.double()).eigenvectors.flip(1).float()
        dim, pairs = vectors.shape[1], len(vectors) * (len(vectors) - 1) / 2
        # The survivors that whole products leave must be looked at in any case.
        least = _above(vectors, above) / pairs * SURVIVOR + dim
        for kept in KEPT:
            if kept + 1 >= dim:
                break
            basis = directions[:, :kept].contiguous()
            cost = _above(_sketched(vectors, basis), above) / pairs * SURVIVOR + kept + 1
            if cost < least:
                least, self.basis = cost, basis

    def __call__(self, vectors: np.ndarray) -> torch.Tensor:
        """(n, k + 1) of (n, d) float32."""
        whole = torch.from_numpy(vectors)
        return whole if self.basis is None else _sketched(whole, self.basis)


def _sketched(vectors: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    inside = vectors @ basis
    outside = (1 - inside.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
    return torch.cat([inside, outside], 1)


def _above(vectors: torch.Tensor, above: float) -> int:
    """Pairs of different vectors with a product above."""
    return int(torch.triu(vectors @ vectors.T > above, 1).sum())
