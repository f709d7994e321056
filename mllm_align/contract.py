"""The shared nouns: what an objective declares, what is measured for it, and what it returns.

    dataset rows -> collator -> Batch -> signals.measure -> Signals -> objective -> Outcome -> trainer

An objective is fully described by the views it scores, the features it extracts, whether it wants a frozen
reference, and the maths on the small tensors that come back. The first three are data (`Needs`); the last is
`Objective.__call__`. This module imports torch and the standard library alone, so an objective written against it
runs in any trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


class View(NamedTuple):
    """One (image column or None, response column) pairing whose response is scored.

    `image` is a canonical column name (`"image"`, `"contrast_image"`) or None: the prompt is then rendered without
    any image placeholder. `response` is `"chosen"` or `"rejected"`.
    """

    image: str | None
    response: str

    def __str__(self) -> str:
        return f"{self.response}|{self.image or 'no_image'}"


class Feature(NamedTuple):
    """A named tensor taken from the model or from a teacher.

    `source` is one of tower, projector, hidden, text, teacher; `column` the image or response column it is taken of;
    `layer` an index into the source's layers or None for its output; `pooling` the name of a pooling. The engine
    measures "projector" (pooling "mean" over the tokens of the row's images, of width d of the language model) and
    "text" (the last layer's hidden states over a response, read in a pass without image, pooling "mean" or "last").
    """

    name: str
    source: str
    column: str
    layer: int | None = None
    pooling: str = "mean"


@dataclass(frozen=True)
class Needs:
    """What an objective declares.

    Args:
        views: Views that every row of the objective must have; a row without their columns is an error.
        optional: Views that are measured only for the rows that have their columns.
        features: Tensors to extract beside the log-probabilities.
        reference: Whether the same views are also scored under the frozen reference.
        tokens: Whether per-token log-probabilities and the tokens' ids are wanted (`Signals.token_logps`,
            `Signals.host_token_ids`).
    """

    views: tuple[View, ...] = ()
    optional: tuple[View, ...] = ()
    features: tuple[Feature, ...] = ()
    reference: bool = False
    tokens: bool = False

    def __or__(self, other: Needs) -> Needs:
        """The union: shared views and features are measured once."""
        views = tuple(dict.fromkeys(self.views + other.views))
        return Needs(
            views=views,
            optional=tuple(v for v in dict.fromkeys(self.optional + other.optional) if v not in views),
            features=tuple(dict.fromkeys(self.features + other.features)),
            reference=self.reference or other.reference,
            tokens=self.tokens or other.tokens,
        )


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
        host_num_tokens: `num_tokens` once more, on the host, where it is known there: to learn which rows have a view,
            nobody then waits for the device.
        host_feature_rows: Per feature name its `row` once more, likewise.
        host_token_ids: Per view, only where `Needs.tokens`: of each row the ids of the response tokens scored, on the
            host, as `token_logps` orders them; empty where the row has no such view.
    """

    logps: Mapping[View, Tensor]
    num_tokens: Mapping[View, Tensor]
    token_logps: Mapping[View, Ragged] = field(default_factory=dict)
    features: Mapping[str, Ragged] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    host_num_tokens: Mapping[View, Sequence[int]] = field(default_factory=dict)
    host_feature_rows: Mapping[str, Sequence[int]] = field(default_factory=dict)
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
            host_num_tokens={view: tuple(own[row] for row in rows) for view, own in self.host_num_tokens.items()},
            host_feature_rows={name: tuple(new) for name, (_, new) in places.items()},
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


class Term(NamedTuple):
    """A loss as a sum and its normaliser (rows, tokens or anchors), both 0-d.

    The trainer divides `sum` by the global count of the whole accumulation window over all ranks. `count` depends on
    which rows and tokens are there, never on measured values, so that it is known before anything is measured.
    """

    name: str
    weight: float
    sum: Tensor
    count: Tensor


@dataclass(frozen=True)
class Outcome:
    """The terms of one batch and the named numbers worth logging.

    `metrics` holds detached tensors with one number per row that it applies to (any shape, averaged over all entries
    of the logging window) or 0-d tensors.
    """

    terms: tuple[Term, ...]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def loss(self) -> Tensor:
        """0-d: the sum of weight x sum / count on this batch; a term without rows contributes zero."""
        parts = [term.weight * term.sum / term.count.clamp(min=1) for term in self.terms]
        return torch.stack(parts).sum()


@runtime_checkable
class Objective(Protocol):
    """Declaration and maths. May be an `nn.Module`: its parameters are then trained and checkpointed with the run."""

    @property
    def needs(self) -> Needs:
        """What must be measured."""
        ...

    def __call__(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The terms and metrics of one batch; `reference` is None where `needs.reference` is False."""
        ...


def needs_for(objective: Objective, source: str) -> Needs:
    """What the rows of one source need: the objective's own answer where it tells sources apart, else its needs."""
    ask: Callable[[str], Needs] | None = getattr(objective, "needs_for", None)
    return ask(source) if ask is not None else objective.needs


class Prefix(NamedTuple):
    """A prompt under one image list (or none), tokenised once and shared by all responses that follow it.

    Attributes:
        input_ids: (P,) with the image placeholders expanded to one id per image token.
        images: Indices into `Batch.images`, in the order in which their placeholders appear.
        extras: Per-token processor outputs that the family's forward wants (`mm_token_type_ids`), each (P,).
    """

    input_ids: Tensor
    images: tuple[int, ...]
    extras: Mapping[str, Tensor]


class Branch(NamedTuple):
    """One response to score after one prefix: `token_ids` (R,) are all scored, the end-of-turn token included."""

    prefix: int
    row: int
    view: View
    token_ids: Tensor


@dataclass(frozen=True)
class Batch:
    """What the collator hands to the engine: distinct images, distinct prefixes, and the responses after each.

    Attributes:
        sources: (B,) the source of each row; `len(batch)` is B.
        row_ids: (B,) a stable id of each row.
        images: Per distinct image the processor's tensors (`pixel_values`, `image_grid_thw`, ...), leading axis kept.
        prefixes: Distinct prefixes.
        branches: Every (row, view) to score.
        reference_rows: (B,) whether the row's views are also wanted from the reference.
        image_ids: Per distinct image a key of its content and of how it was processed; empty where nobody made one.
        row_images: Per image column that a feature is taken of, (B,) the indices into `images` of each row's own; no
            column where no row's feature is taken of images, None where nobody told.
    """

    sources: tuple[str, ...]
    row_ids: tuple[str, ...]
    images: tuple[Mapping[str, Tensor], ...]
    prefixes: tuple[Prefix, ...]
    branches: tuple[Branch, ...]
    reference_rows: tuple[bool, ...]
    image_ids: tuple[str, ...] = ()
    row_images: Mapping[str, tuple[tuple[int, ...], ...]] | None = None

    def __len__(self) -> int:
        return len(self.sources)

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """A copy with every tensor replaced by `change(tensor)`."""
        return replace(
            self,
            images=tuple({key: change(value) for key, value in image.items()} for image in self.images),
            prefixes=tuple(
                Prefix(change(p.input_ids), p.images, {key: change(value) for key, value in p.extras.items()})
                for p in self.prefixes
            ),
            branches=tuple(Branch(b.prefix, b.row, b.view, change(b.token_ids)) for b in self.branches),
        )

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        """A copy with its pixels on `device`; token ids and grids stay on the host, where sequences are packed."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking) if tensor.is_floating_point() else tensor

        return self.map(move)

    def pin_memory(self) -> Batch:
        """A copy with its pixels in page-locked memory (called by the data loader); the rest stays on the host."""
        return self.map(lambda tensor: tensor.pin_memory() if tensor.is_floating_point() else tensor)

    def num_tokens(self, view: View) -> Tensor:
        """(B,) int64: response tokens of `view` per row, 0 where the row has no such view."""
        counts = torch.zeros(len(self), dtype=torch.long)
        for branch in self.branches:
            if branch.view == view:
                counts[branch.row] = branch.token_ids.numel()
        return counts

    def token_ids(self, counts: Mapping[View, Sequence[int]]) -> dict[View, tuple[tuple[int, ...], ...]]:
        """Per view of `counts` (B,) the ids of each row's response tokens, none where the row's count is 0."""
        found: dict[View, list[tuple[int, ...]]] = {view: [()] * len(self) for view in counts}
        for branch in self.branches:
            if branch.view in found and counts[branch.view][branch.row]:
                found[branch.view][branch.row] = tuple(branch.token_ids.tolist())
        return {view: tuple(rows) for view, rows in found.items()}

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to measure: no response, and no image that a feature is taken of."""
        return not self.branches and not any(map(any, (self.row_images or {}).values()))

    @property
    def views(self) -> tuple[View, ...]:
        """The distinct views that occur, in order of first use."""
        return tuple(dict.fromkeys(branch.view for branch in self.branches))
