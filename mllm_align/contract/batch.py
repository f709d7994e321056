"""What the collator hands to the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mllm_align.contract.needs import View
from mllm_align.contract.regions import Regions


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


class Phrase(NamedTuple):
    """What regions are called, after a prefix without an image: `token_ids` (R,), the end of the turn included."""

    prefix: int
    token_ids: Tensor

    @property
    def num_states(self) -> int:
        """How many states of it there are where all are read: one fewer than tokens, and one at the least."""
        return max(self.token_ids.numel() - 1, 1)


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
        regions: Per image column that a feature pools regions of, those that cover something of what the model is
            shown.
        region_weights: Per such column, of each region (T,) float32: how much of each of its image's first T tokens it
            covers, 0 to 1; the others it does not.
        num_lost_regions: How many others the rows have.
        phrases: The distinct texts of regions, where a feature is taken of them.
        region_phrases: Per such column, of each region which of `phrases` is its text; -1 where it has none.
        region_negatives: Per column of which a feature is of its regions' negatives, which of `phrases` these are, in
            order of region.
        region_positives: Likewise of their positives.
        region_tokens: Per column of which a feature is of its regions' tokens, of each region which of its image's
            tokens it covers, int64; they stay on the host.
        image_sizes: Per distinct image how many tokens the language model reads of it; empty where nobody counted.
        teacher_features: Per feature of a teacher (N, d), in order of row; none where no row has an entry.
    """

    sources: tuple[str, ...]
    row_ids: tuple[str, ...]
    images: tuple[Mapping[str, Tensor], ...]
    prefixes: tuple[Prefix, ...]
    branches: tuple[Branch, ...]
    reference_rows: tuple[bool, ...]
    image_ids: tuple[str, ...] = ()
    row_images: Mapping[str, tuple[tuple[int, ...], ...]] | None = None
    regions: Mapping[str, Regions] = field(default_factory=dict)
    region_weights: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    num_lost_regions: int = 0
    phrases: tuple[Phrase, ...] = ()
    region_phrases: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    region_negatives: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    region_positives: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    region_tokens: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    image_sizes: tuple[int, ...] = ()
    teacher_features: Mapping[str, Tensor] = field(default_factory=dict)

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
            region_weights={column: tuple(map(change, own)) for column, own in self.region_weights.items()},
            region_tokens={column: tuple(map(change, own)) for column, own in self.region_tokens.items()},
            phrases=tuple(Phrase(p.prefix, change(p.token_ids)) for p in self.phrases),
            teacher_features={name: change(own) for name, own in self.teacher_features.items()},
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
