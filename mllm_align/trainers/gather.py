"""The signals of all ranks as those of one batch: what a contrastive objective finds negatives in.

Every rank computes the objective on the rows of all of them. Its own values keep their graph, those of the others are
constants: what comes back to a value is then the whole derivative of the global loss, and nothing has to be sent
backward. The formulas of an objective know nothing of it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mllm_align.contract import Ragged, Regions, Signals, View
from mllm_align.signals.packing import send


@dataclass(frozen=True)
class Shape:
    """What the host knows of a rank's signals.

    Attributes:
        rows: B.
        num_tokens: Per view of each row.
        feature_rows: Per feature the row of each entry.
        feature_ids: Per feature, where it is known, what each entry read.
        feature_width: Per feature the shape of one entry.
        wide: Whether something is wider than float32.
    """

    rows: int
    num_tokens: Mapping[View, Sequence[int]]
    feature_rows: Mapping[str, Sequence[int]]
    feature_ids: Mapping[str, Sequence[int]]
    feature_width: Mapping[str, tuple[int, ...]]
    token_ids: Mapping[View, Sequence[Sequence[int]]]
    sources: tuple[str, ...]
    row_ids: tuple[str, ...]
    regions: Mapping[str, Regions]
    wide: bool

    @classmethod
    def of(cls, signals: Signals) -> Shape:
        """Of one rank's signals.

        Raises:
            ValueError: If the host does not know which rows have what.
        """
        unknown = [str(view) for view in signals.logps if view not in signals.host_num_tokens]
        unknown += [name for name in signals.features if name not in signals.host_feature_rows]
        if unknown:
            raise ValueError(f"the host does not know which rows have {unknown[0]}: signals of ranks cannot be joined")
        values = (*signals.logps.values(), *(ragged.values for ragged in signals.features.values()))
        return cls(
            rows=len(signals.sources),
            num_tokens=dict(signals.host_num_tokens),
            feature_rows={name: tuple(signals.host_feature_rows[name]) for name in signals.features},
            feature_ids={name: own for name, own in signals.host_feature_ids.items() if name in signals.features},
            feature_width={name: tuple(ragged.values.shape[1:]) for name, ragged in signals.features.items()},
            token_ids=dict(signals.host_token_ids) if signals.token_logps else {},
            sources=signals.sources,
            row_ids=signals.row_ids,
            regions=dict(signals.regions),
            wide=any(value.dtype == torch.float64 for value in values),
        )


def over_ranks(own: Signals, device: Any, *, zeros: bool = False) -> Signals:
    """The signals of all ranks as one batch, rank after rank (a collective: every rank must call it).

    Args:
        own: Of this rank; may be without rows.
        device: Where the result is.
        zeros: Send no values, for they are all zero.

    Returns:
        Signals of the rows of all ranks. The gradient of this rank's values is multiplied by the number of ranks,
        since it is averaged over them afterwards.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return own
    shape = Shape.of(own)
    ranks: list[Shape] = gather_on_host(shape)
    rank, size = dist.get_rank(), dist.get_world_size()
    joined = _Joined(ranks, rank, device, _anchor(own, device), zeros)
    offsets = [sum(each.rows for each in ranks[:number]) for number in range(size)]
    counts = {view: _each_row(ranks, "num_tokens", view, 0) for view in _keys(ranks, "num_tokens")}
    told = {view: _each_row(ranks, "token_ids", view, ()) for view in _keys(ranks, "token_ids")}
    rows = {name: _shifted(ranks, offsets, name) for name in _keys(ranks, "feature_rows")}
    return Signals(
        logps={view: joined.values(own.logps.get(view), [each.rows for each in ranks], ()) for view in counts},
        num_tokens={view: send(np.array(count, dtype=np.int64), device) for view, count in counts.items()},
        token_logps={view: joined.tokens(own.token_logps.get(view), view, counts[view]) for view in told},
        features={name: joined.feature(own.features.get(name), name, places) for name, places in rows.items()},
        sources=tuple(source for each in ranks for source in each.sources),
        row_ids=tuple(name for each in ranks for name in each.row_ids),
        regions=_regions(ranks, offsets),
        host_num_tokens=counts,
        host_feature_rows=rows,
        host_feature_ids={name: _joined_ids(ranks, name) for name in _keys(ranks, "feature_ids")},
        host_token_ids=told,
    )


def _each_row(ranks: Sequence[Shape], table: str, key: Any, absent: Any) -> tuple[Any, ...]:
    """An entry for each row of all ranks, `absent` for those of a rank that has no such key."""
    return tuple(entry for rank in ranks for entry in getattr(rank, table).get(key, (absent,) * rank.rows))


def _keys(ranks: Sequence[Shape], table: str) -> list[Any]:
    """Keys of all ranks, in an order that they agree on."""
    return sorted({key for rank in ranks for key in getattr(rank, table)}, key=str)


def _shifted(ranks: Sequence[Shape], offsets: Sequence[int], name: str) -> tuple[int, ...]:
    pairs = zip(ranks, offsets, strict=True)
    return tuple(offset + row for rank, offset in pairs for row in rank.feature_rows.get(name, ()))


def _joined_ids(ranks: Sequence[Shape], name: str) -> tuple[int, ...]:
    """Rank after rank; 0 for the entries of a rank that does not know."""
    found = ((rank.feature_ids.get(name), len(rank.feature_rows.get(name, ()))) for rank in ranks)
    return tuple(number for own, count in found for number in (own or (0,) * count))


def gather_on_host(entry: Any) -> list[Any]:
    """Every rank's entry (a collective); no rank waits for its device."""
    if not (dist.is_available() and dist.is_initialized()):
        return [entry]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, entry, group=_host_group(dist.group.WORLD))
    return found


@functools.lru_cache(maxsize=1)
def _host_group(world: Any) -> Any:
    """All ranks, over a back end that sends from host memory: NCCL sends objects through the GPU."""
    return world if "gloo" in str(dist.get_backend_config(world)) else dist.new_group(backend="gloo")


class _Joined:
    """Values of all ranks one after the other, this rank's with their graph."""

    def __init__(self, ranks: Sequence[Shape], rank: int, device: Any, anchor: Tensor, zeros: bool) -> None:
        self.ranks, self.rank, self.device, self.anchor, self.zeros = ranks, rank, device, anchor, zeros
        self.dtype = torch.float64 if any(each.wide for each in ranks) else torch.float32

    def values(self, own: Tensor | None, sizes: Sequence[int], width: tuple[int, ...]) -> Tensor:
        """(sum of sizes, *width); `own` is of this rank's size, or None where it has none."""
        here = torch.zeros(sizes[self.rank], *width, device=self.device) if own is None else own
        here = here.to(self.dtype)
        if len(here) != sizes[self.rank]:
            raise ValueError(f"{len(here)} values for {sizes[self.rank]} entries: signals of ranks cannot be joined")
        if self.zeros:
            return here.new_zeros(sum(sizes), *width)
        padded = here.new_zeros(max(sizes), *width)
        padded[: len(here)] = here.detach()
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded)
        parts = [each[:size] for each, size in zip(found, sizes, strict=True)]
        parts[self.rank] = _Scaled.apply(here + self.anchor.to(self.dtype), len(sizes))
        return torch.cat(parts)

    def feature(self, own: Ragged | None, name: str, rows: Sequence[int]) -> Ragged:
        """A feature of all ranks, `rows` the row of each entry."""
        sizes = [len(rank.feature_rows.get(name, ())) for rank in self.ranks]
        width = next(rank.feature_width[name] for rank in self.ranks if name in rank.feature_width)
        row = send(np.array(rows, dtype=np.int64), self.device)
        return Ragged(self.values(None if own is None else own.values, sizes, width), row)

    def tokens(self, own: Ragged | None, view: View, counts: Sequence[int]) -> Ragged:
        """Per-token log-probabilities of all ranks."""
        sizes = [sum(rank.num_tokens.get(view, ())) for rank in self.ranks]
        row = send(np.repeat(np.arange(len(counts)), counts), self.device)
        return Ragged(self.values(None if own is None else own.values, sizes, ()), row)


class _Scaled(torch.autograd.Function):
    """A value whose gradient is multiplied."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def _anchor(own: Signals, device: Any) -> Tensor:
    """0-d zero on the graph of what was measured, so that a rank without some feature is seen to take part."""
    ragged = (*own.features.values(), *own.token_logps.values())
    empty = [value.flatten()[:0].sum() for value in (*own.logps.values(), *(each.values for each in ragged))]
    return torch.stack([each.double() for each in empty]).sum() if empty else torch.zeros((), device=device)


def _regions(ranks: Sequence[Shape], offsets: Sequence[int]) -> dict[str, Regions]:
    found = {}
    for column in _keys(ranks, "regions"):
        parts = [(rank.regions[column], n) for rank, n in zip(ranks, offsets, strict=True) if column in rank.regions]
        entries = {
            f.name: tuple(entry for part, _ in parts for entry in getattr(part, f.name)) for f in fields(Regions)
        }
        entries["row"] = tuple(offset + row for part, offset in parts for row in part.row)
        found[column] = Regions(**entries)
    return found
