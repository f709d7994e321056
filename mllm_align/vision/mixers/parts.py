"""What several mixers are made of: an MLP, norms, windows of cells, and attention of one query over its own keys."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm_align.vision.mixers.base import Cells

NORMS = ("none", "layer", "l2")

# Which encoder; (M, s, C) of it, s for each query; one, or zero where it must not be attended to, or (M,) of these.
Found = Sequence[tuple[int, Tensor, float | Tensor]]


def mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    """Linear-GELU-Linear, as LLaVA-1.5's projector (Liu et al., 2023), https://arxiv.org/abs/2310.03744"""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


class UnitNorm(nn.Module):
    """Vectors of one length, which is learned; at first the root of the width, as after a layer norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(math.sqrt(width)))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same."""
        return (F.normalize(precise(x), dim=-1) * self.scale).to(x.dtype)


def normaliser(kind: str, width: int) -> nn.Module:
    """One of `NORMS`: nothing, a layer norm, or vectors of one length."""
    return {"none": lambda _: nn.Identity(), "layer": nn.LayerNorm, "l2": UnitNorm}[kind](width)


def precise(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@torch.no_grad()
def length(x: Tensor) -> Tensor:
    """Mean length of the vectors: (..., width) to no dimensions."""
    return precise(x).norm(dim=-1).mean()


def windows(values: Tensor, cells: Cells, side: int) -> Tensor:
    """What lies in each cell of a coarser grid.

    Args:
        values: (V, rows * side * columns * side, C), row by row.
        cells: Rows and columns of the coarser grid.
        side: How many rows, and columns, of the finer one make up a cell.

    Returns:
        (V * rows * columns, side * side, C); both row by row.
    """
    rows, columns = cells
    split = values.unflatten(1, (rows, side, columns, side)).transpose(2, 3)
    return split.reshape(-1, side * side, values.shape[-1])


class Attention(nn.Module):
    """Each query attends, by one softmax, to the keys of several sources that lie in its cell.

    LayerNorm and Linear make the query, and keys and values for each source.

    Args:
        query: Width of queries.
        sources: Width of what each source has.
        width: Of keys, of all heads together.
        heads: How many.
        bias: Whether the linear layers have one.
    """

    def __init__(self, query: int, sources: Sequence[int], width: int, heads: int, *, bias: bool) -> None:
        super().__init__()

        def normed(of: int) -> nn.Sequential:
            return nn.Sequential(nn.LayerNorm(of), nn.Linear(of, width, bias=bias))

        self.heads = heads
        self.query = normed(query)
        self.key = nn.ModuleList(normed(each) for each in sources)
        self.value = nn.ModuleList(normed(each) for each in sources)

    def forward(self, query: Tensor, found: Found) -> tuple[Tensor, dict[int, Tensor]]:
        """What is attended to, and how much of each source.

        Args:
            query: (M, query).
            found: At least one. For each source that takes part, which it is, what it has for each query (M, s, its
                width), and one, or zero for a source that must not be attended to but whose parameters must have
                gradients; or that for each query, (M,).

        Returns:
            (M, width), zeros where nothing may be attended to; and by source its mean part of the attention, no
            dimensions, detached.
        """
        queries = self.query(query).unflatten(-1, (self.heads, -1))
        keys = torch.cat([self.key[which](has) for which, has, _ in found], dim=1)
        values = torch.cat([self.value[which](has) for which, has, _ in found], dim=1)
        keys, values = keys.unflatten(-1, (self.heads, -1)), values.unflatten(-1, (self.heads, -1))
        scores = precise(torch.einsum("mhd,mshd->mhs", queries, keys)) / math.sqrt(queries.shape[-1])
        sizes = [has.shape[1] for _, has, _ in found]
        if all(not isinstance(weight, Tensor) and weight for *_, weight in found):
            attention = scores.softmax(dim=-1)
        else:
            weights = [torch.as_tensor(weight).to(scores).expand(len(query)).unsqueeze(1) for *_, weight in found]
            mask = torch.cat([weight.expand(-1, size) for weight, size in zip(weights, sizes, strict=True)], dim=1)
            mask = mask.unsqueeze(1)
            # Not minus infinity: where nothing is left, zeros are to come out, not NaN.
            attention = scores.masked_fill(mask == 0, torch.finfo(scores.dtype).min).softmax(dim=-1) * mask
        out = torch.einsum("mhs,mshd->mhd", attention.to(values.dtype), values).flatten(1)
        parts = attention.detach().split(sizes, dim=-1)
        return out, {which: part.sum(-1).mean() for (which, *_), part in zip(found, parts, strict=True)}
