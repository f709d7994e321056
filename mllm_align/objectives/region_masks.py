"""Which regions of a batch are alike: in one row or image, one thing, of one name or class, one within the other."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mllm_align.contract import Regions
from mllm_align.objectives.host import sent


@dataclass(frozen=True)
class RegionTable:
    """What is known of N regions, of one image column after the other, as numbers.

    Attributes:
        row: (N,) equal where they are in one row.
        picture: (N,) equal where regions are on one image of a row.
        thing: (N,) equal where they have one id; 0 for none. Ids hold within a row.
        text: (N,) equal where they are called the same, small and capital letters aside; 0 for nothing.
        kind: (N,) equal where they are of one class; 0 for none.
        boxes: (N, 4) left, top, right and bottom as shares.
    """

    row: Tensor
    picture: Tensor
    thing: Tensor
    text: Tensor
    kind: Tensor
    boxes: Tensor

    def pick(self, index: Tensor) -> RegionTable:
        """Some regions, in the order given."""
        return RegionTable(*(getattr(self, column.name)[index] for column in fields(self)))

    def alike(self, overlap: float, *, same_class: bool = True) -> Tensor:
        """(N, N) bool: pairs of which nobody can say that what is true of one is false of the other.

        A region itself, one thing in a row, what is called the same, what is of one class (without `same_class`), and
        two regions of one image of which one lies within the other by more than the share `overlap` of its area.
        """
        found = equal(self.text) & (self.text != 0)
        found = found | (equal(self.thing) & (self.thing != 0) & equal(self.row)) | self.nested(overlap)
        if not same_class:
            found = found | (equal(self.kind) & (self.kind != 0))
        return found | torch.eye(len(self.row), dtype=torch.bool, device=self.row.device)

    def nested(self, overlap: float) -> Tensor:
        """(N, N) bool: two regions of one image of which one lies within the other by more than this share."""
        return equal(self.picture) & (contained(self.boxes) > overlap)


def table_of(told: Mapping[str, Regions], device: Any) -> RegionTable:
    """What is told of the regions of some image columns; made on the host, nobody waits for the device."""
    everything = [(column, regions) for column, regions in told.items()]
    rows = [row for _, regions in everything for row in regions.row]
    pictures = [(name, *at) for name, own in everything for at in zip(own.row, own.image, strict=True)]
    things = [name for _, regions in everything for name in regions.object_ids]
    texts = [text.casefold() for _, regions in everything for text in regions.texts]
    kinds = [kind for _, regions in everything for kind in regions.kinds]
    columns = [torch.tensor(_numbers(values), dtype=torch.long) for values in (rows, pictures, things, texts, kinds)]
    sides = [box for _, regions in everything for box in regions.boxes]
    boxes = torch.tensor(sides, dtype=torch.float32).reshape(-1, 4)
    return RegionTable(*(sent(column, device) for column in columns), boxes=sent(boxes, device))


def equal(values: Tensor) -> Tensor:
    """(N, N) bool: where two of (N,) values are equal."""
    return values[:, None] == values[None, :]


def check_similarity(owner: str, limit: float | None) -> None:
    """Raises ValueError unless `limit` is a cosine between 0 and 1, or None; `owner` is named in the message."""
    is_number = isinstance(limit, int | float) and not isinstance(limit, bool)
    if limit is not None and not (is_number and 0 < limit < 1):
        raise ValueError(
            f"{owner}: text_similarity must be a cosine between 0 and 1, or None for equal texts, got {limit!r}"
        )


def similar(one: Tensor, other: Tensor, limit: float | None) -> Tensor:
    """(N, M) bool, without a gradient: which of unit vectors (N, d) and (M, d) have a cosine above `limit`.

    Keys of such a pair are no negatives of each other's anchors, whatever they are called. It depends on what was
    measured, and the number of anchors must not: one that is left without a negative counts, with loss 0.
    """
    if limit is None:
        return torch.zeros(len(one), len(other), dtype=torch.bool, device=one.device)
    return one.detach() @ other.detach().T > limit


def contained(boxes: Tensor) -> Tensor:
    """(N, N) the share of the smaller of two boxes (N, 4) that lies in the other."""
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    smaller = torch.minimum(area[:, None], area[None, :]).clamp(min=torch.finfo(boxes.dtype).tiny)
    return (high - low).clamp(min=0).prod(dim=2) / smaller


def _numbers(values: Sequence[Hashable]) -> list[int]:
    known: dict[Hashable, int] = {"": 0}
    return [known.setdefault(value, len(known)) for value in values]
