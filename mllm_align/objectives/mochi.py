"""Synthetic negatives: mixtures of the hardest ones, and of these with the anchor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mllm_align.objectives.host import sent
from mllm_align.objectives.memory import numbers_of

# Numbers of vectors that are gathered at one time: 64 MB in float32.
MAX_NUMBERS = 2**24


@dataclass(frozen=True)
class Mixing:
    """How many synthetic negatives an anchor gets: MoCHi (Kalantidis et al., 2020), https://arxiv.org/abs/2010.01028

    Args:
        hardest: How many of the most similar negatives are mixed.
        of_keys: Mixtures of two of them, a n + (1 - a) m with a from 0 to 1.
        of_anchor: Mixtures of one with the anchor, b q + (1 - b) n with b from 0 to 1/2.
        seed: Of the draws. They depend on it and on the ids of the batch's rows alone, which are made of what a row
            holds where it has none; for signals without ids they are the same in every batch.

    Raises:
        ValueError: For a value without a meaning.
    """

    hardest: int = 1024
    of_keys: int = 1024
    of_anchor: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("hardest", 1), ("of_keys", 0), ("of_anchor", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if not self.of_keys and not self.of_anchor:
            raise ValueError("of_keys and of_anchor are both 0: leave mixing out")


class Draws(NamedTuple):
    """Numbers from 0 to 1: (N, s) three times for mixtures of keys, (N, s') twice for those with the anchor."""

    first: Tensor
    second: Tensor
    share: Tensor
    key: Tensor
    part: Tensor


def generator_of(row_ids: Sequence[str], seed: int) -> torch.Generator:
    """Where draws come from: the same for the same rows in any order, so on every rank and in a resumed run."""
    number = int(numbers_of(row_ids).sum().item()) + seed if row_ids else seed
    return torch.Generator().manual_seed(number % 2**63)


def drawn(number: int, mixing: Mixing, generator: torch.Generator, like: Tensor) -> Draws:
    """Draws for `number` anchors, drawn on the host, on the device and in the precision of `like`."""
    sizes = (mixing.of_keys,) * 3 + (mixing.of_anchor,) * 2
    found = (torch.rand(number, size, generator=generator, dtype=torch.float64) for size in sizes)
    return Draws(*(sent(each, like.device).to(like.dtype) for each in found))


def synthetic(anchors: Tensor, keys: Tensor, negative: Tensor, hardest: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Cosines of anchors to synthetic negatives, whose vectors are never made.

    The cosine of q to n + m, brought to unit length, is (q n + q m) / |n + m|, and the length follows from n m. A
    synthetic negative has no gradient, whether it is of keys or of the anchor: the anchor alone is pushed away.

    Args:
        anchors: (N, d) unit vectors.
        keys: (M, d) unit vectors.
        negative: (N, M) bool.
        hardest: How many of an anchor's negatives are mixed, the most similar ones.
        draws: Which are mixed, and how much of each.

    Returns:
        (N, s + s') cosines, mixtures of keys first; (N, s + s') bool, False where an anchor has no negative to mix.
    """
    keys = keys.detach()
    cosines = anchors @ keys.T
    hidden = torch.finfo(cosines.dtype).min
    number = min(hardest, keys.shape[0])
    nearest = cosines.detach().masked_fill(~negative, hidden).topk(number, dim=1).indices
    there = negative.sum(dim=1, keepdim=True).clamp(max=number)
    last = (there - 1).clamp(min=0)

    def picked(uniform: Tensor) -> Tensor:
        return nearest.gather(1, (uniform * there).long().minimum(last))

    first, second, key = picked(draws.first), picked(draws.second), picked(draws.key)
    share, part = draws.share, draws.part / 2
    between = share * cosines.gather(1, first) + (1 - share) * cosines.gather(1, second)
    mixed = between / _length(share, _products(keys, first, second))
    # The anchor within a mixture is a constant, the one that is compared with it is not.
    itself = (anchors * anchors.detach()).sum(dim=1, keepdim=True)
    towards = part * itself + (1 - part) * cosines.gather(1, key)
    pulled = towards / _length(part, cosines.detach().gather(1, key))
    found = torch.cat([mixed, pulled], dim=1)
    return found, (there > 0).expand(found.shape)


def _length(share: Tensor, product: Tensor) -> Tensor:
    """Of a mixture of two unit vectors; those that cancel each other have none, and are kept from dividing by it."""
    squared = share**2 + (1 - share) ** 2 + 2 * share * (1 - share) * product
    return squared.clamp(min=torch.finfo(squared.dtype).eps).sqrt()


def _products(keys: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """(N, s) products of pairs of keys, some anchors at a time."""
    if not first.numel():
        return keys.new_zeros(first.shape)
    size = max(1, MAX_NUMBERS // max(1, first.shape[1] * keys.shape[1]))
    pairs = zip(first.split(size), second.split(size), strict=True)
    return torch.cat([(keys[one] * keys[other]).sum(dim=2) for one, other in pairs])
