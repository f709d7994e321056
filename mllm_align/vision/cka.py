"""How alike several representations of the same things are: linear CKA, added up over batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations_with_replacement

import torch
from torch import Tensor


class LinearCKA:
    """Centred kernel alignment with linear kernels (Kornblith et al., 2019), https://arxiv.org/abs/1905.00414, over
    minibatches (Nguyen et al., 2021), https://arxiv.org/abs/2010.15327

    Each batch gives the unbiased estimate of HSIC (Song et al., 2012); CKA is the mean of HSIC(a, b) over batches by
    the root of those of HSIC(a, a) and HSIC(b, b). So it does not grow with the width or as the batch shrinks, as the
    biased form does: what is unrelated has about 0, and may come out a little below. 1 is alike up to rotation and
    scale of all vectors.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.sums: dict[tuple[str, str], float] = {}

    @torch.no_grad()
    def add(self, vectors: Mapping[str, Tensor]) -> None:
        """One more batch.

        Args:
            vectors: By name what represents the same n things, (n, d), each with a width of its own; n is 4 at least.

        Raises:
            ValueError: If they are not as many, fewer than 4, or the names are not those of the batches before.
        """
        names, counts = tuple(vectors), {len(each) for each in vectors.values()}
        if self.names and names != self.names:
            raise ValueError(f"CKA of {', '.join(self.names)} so far, now of {', '.join(names)}")
        if len(counts) != 1 or min(counts) < 4:
            raise ValueError(f"CKA needs the same 4 or more things in every representation, got {sorted(counts)}")
        self.names = names
        count = counts.pop()
        centred = {name: _centred(each) for name, each in vectors.items()}
        for pair in combinations_with_replacement(names, 2):
            product = (centred[pair[0]] * centred[pair[1]]).sum().item() / (count * (count - 3))
            self.sums[pair] = self.sums.get(pair, 0.0) + product

    def between(self, first: str, second: str) -> float:
        """CKA of two representations; NaN where one of them is the same everywhere, or nothing was added."""
        pair = (first, second) if (first, second) in self.sums else (second, first)
        own = self.sums.get((first, first), 0.0) * self.sums.get((second, second), 0.0)
        return self.sums[pair] / math.sqrt(own) if own > 0 else math.nan

    def matrix(self) -> list[list[float]]:
        """Of all with all, in the order of `names`."""
        return [[self.between(first, second) for second in self.names] for first in self.names]


def _centred(vectors: Tensor) -> Tensor:
    """(n, d) to the U-centred (n, n) products of all with all, zeros on the diagonal.

    The sum of two such, entry by entry, over n (n - 3) is the unbiased HSIC.
    """
    # Shifts change nothing but the rounding.
    vectors = vectors.double() - vectors.double().mean(dim=0)
    products, count = (vectors @ vectors.T).fill_diagonal_(0), len(vectors)
    sums = products.sum(dim=0) / (count - 2)
    return (products - sums - sums[:, None] + sums.sum() / (count - 1)).fill_diagonal_(0)
