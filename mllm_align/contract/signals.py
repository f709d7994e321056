"""What was measured for one model on one batch: the small tensors that an objective is maths on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mllm_align.contract.needs import View
from mllm_align.contract.regions import Regions


class Ragged(NamedTuple):
    """A tensor with a different number of entries per row: `values` (N, ...) and `row` (N,), the batch row of each."""

    values: Tensor
    row: Tensor


@dataclass(frozen=True)
class Signals:
    """What was measured for one model on one batch of B rows.

    A view that a row does not have (an optional view, or a row of another source) has `num_tokens` 0 and `logps` 0
    there. Log-probabilities are float32 (or wider).

    Attributes:
        logps: Per view (B,): sum of log p over the response tokens.
        num_tokens: Per view (B,), int64: number of response tokens scored; 0 where the row has no such view.
        token_logps: Per view, only where `Needs.tokens`: `values` (N,) in order of row and position.
        features: Per feature name: `values` (N, d), in order of row; a name that no row has is absent.
        sources: (B,) the name of the source each row came from.
        row_ids: (B,) a stable id of each row, where it is known.
        host_num_tokens: `num_tokens` once more, on the host, where it is known there: to learn which rows have a view,
            nobody then waits for the device.
        host_feature_rows: Per feature name its `row` once more, likewise.
        host_feature_ids: Per feature name, for each entry a number (int64) on the host that is equal for entries in
            which the same was read, tokens and images; 0 where nobody told, and no name where nobody told of any.
        regions: Per image column that a feature pools regions of, what is known of each; entry n of the feature is
            region n.
        host_token_ids: Per view, only where `Needs.tokens`: of each row the ids of the response tokens scored, on the
            host, as `token_logps` orders them; empty where the row has no such view.
    """

    logps: Mapping[View, Tensor]
    num_tokens: Mapping[View, Tensor]
    token_logps: Mapping[View, Ragged] = field(default_factory=dict)
    features: Mapping[str, Ragged] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    row_ids: tuple[str, ...] = ()
    regions: Mapping[str, Regions] = field(default_factory=dict)
    host_num_tokens: Mapping[View, Sequence[int]] = field(default_factory=dict)
    host_feature_rows: Mapping[str, Sequence[int]] = field(default_factory=dict)
    host_feature_ids: Mapping[str, Sequence[int]] = field(default_factory=dict)
    host_token_ids: Mapping[View, Sequence[Sequence[int]]] = field(default_factory=dict)

    def has(self, view: View) -> Tensor:
        """(B,) bool: the rows that have `view`."""
        return self.num_tokens[view] > 0

    def rows_with(self, views: Sequence[View], *, any_of: bool = False) -> Tensor:
        """(N,) int64: indices of the rows that have every one of `views`, or any of them."""
        device = self.num_tokens[views[0]].device
        if all(view in self.host_num_tokens for view in views):
            wanted = any if any_of else all
            counts = zip(*(self.host_num_tokens[view] for view in views), strict=True)
            return _index([row for row, own in enumerate(counts) if wanted(own)], device)
        has = torch.stack([self.has(view) for view in views])
        return (has.any(dim=0) if any_of else has.all(dim=0)).nonzero().flatten()

    def select(self, rows: Sequence[int]) -> Signals:
        """The signals of some rows, in the order given."""
        counts = next(iter(self.num_tokens.values()), None)
        index = _index(list(rows), counts.device if counts is not None else None)
        places = {name: _places(own, rows) for name, own in self.host_feature_rows.items() if name in self.features}
        return Signals(
            logps={view: value[index] for view, value in self.logps.items()},
            num_tokens={view: value[index] for view, value in self.num_tokens.items()},
            token_logps={
                view: _select_tokens(value, self.host_num_tokens[view], rows)
                if view in self.host_num_tokens
                else _select_ragged(value, rows)
                for view, value in self.token_logps.items()
            },
            features={
                name: _pick(value, *places[name]) if name in places else _select_ragged(value, rows)
                for name, value in self.features.items()
            },
            sources=tuple(self.sources[row] for row in rows) if self.sources else (),
            row_ids=tuple(self.row_ids[row] for row in rows) if self.row_ids else (),
            regions={column: own.select(rows) for column, own in self.regions.items()},
            host_num_tokens={view: tuple(own[row] for row in rows) for view, own in self.host_num_tokens.items()},
            host_feature_rows={name: tuple(new) for name, (_, new) in places.items()},
            host_feature_ids={
                name: tuple(own[place] for place in places[name][0])
                for name, own in self.host_feature_ids.items()
                if name in places
            },
            host_token_ids={view: tuple(own[row] for row in rows) for view, own in self.host_token_ids.items()},
        )


def _index(rows: Sequence[int], device: Any) -> Tensor:
    """Row numbers as an index on a device, without waiting for it."""
    if rows == list(range(len(rows))):
        return torch.arange(len(rows), device=device)
    return _sent(torch.tensor(rows, dtype=torch.long), device)


def _sent(tensor: Tensor, device: Any) -> Tensor:
    # Only out of page-locked memory does a copy not wait.
    if device is not None and torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _select_tokens(ragged: Ragged, counts: Sequence[int], rows: Sequence[int]) -> Ragged:
    """As `_select_ragged`, for entries in order of row whose number per row is known on the host."""
    every = torch.tensor(counts, dtype=torch.long)
    picked = torch.tensor(rows, dtype=torch.long)
    lengths = every[picked]
    row = torch.repeat_interleave(torch.arange(len(rows)), lengths)
    start = (every.cumsum(0) - every)[picked] - (lengths.cumsum(0) - lengths)
    index = torch.arange(row.numel()) + start[row]
    device = ragged.row.device
    return Ragged(ragged.values[_sent(index, device)], _sent(row, device))


def _places(own: Sequence[int], rows: Sequence[int]) -> tuple[list[int], list[int]]:
    """Of the entries whose rows are `own`, those of `rows` in that order; and the new row of each."""
    entries: dict[int, list[int]] = {}
    for place, row in enumerate(own):
        entries.setdefault(row, []).append(place)
    found = [(place, new) for new, row in enumerate(rows) for place in entries.get(row, ())]
    return [place for place, _ in found], [new for _, new in found]


def _pick(ragged: Ragged, places: Sequence[int], rows: Sequence[int]) -> Ragged:
    device = ragged.row.device
    return Ragged(ragged.values[_index(places, device)], _index(rows, device))


def _select_ragged(ragged: Ragged, rows: Sequence[int]) -> Ragged:
    picked = [(ragged.row == row).nonzero().flatten() for row in rows]
    if not picked:
        return Ragged(ragged.values[:0], ragged.row[:0])
    index = torch.cat(picked)
    row = torch.cat([torch.full_like(entries, new) for new, entries in enumerate(picked)])
    return Ragged(ragged.values[index], row)
