"""The objects of rows as regions of a batch: those that cover something, with their weights over image tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mllm_align.contract import Regions
from mllm_align.data.objects import ImageObject
from mllm_align.data.pixels import EncodedImage

# Of some objects on one image (objects, T): how much of each of its first T tokens each covers, 0 to 1.
WeighRegions = Callable[[EncodedImage, Sequence[ImageObject]], Tensor]


class RegionList:
    """Regions of one image column, collected row by row.

    Attributes:
        weights: Of each (T,), as `Batch.region_weights`.
        num_lost: Objects that cover nothing of what the model is shown: without area, outside, or cropped away.
    """

    def __init__(self) -> None:
        self.weights: list[Tensor] = []
        self.num_lost = 0
        self._found: list[tuple[int, ImageObject]] = []

    def add(
        self, row: int, objects: Sequence[ImageObject], images: Sequence[EncodedImage], weigh: WeighRegions
    ) -> list[int]:
        """The objects of one row, on its images, in the order given; returns which of them are kept."""
        weights: dict[int, Tensor] = {}
        for index, image in enumerate(images):
            own = [place for place, each in enumerate(objects) if each.image == index]
            if own:
                found = weigh(image, [objects[place] for place in own])
                weights |= dict(zip(own, found, strict=True))
        kept = []
        for place, each in enumerate(objects):
            if weights[place].any():
                kept.append(place)
                self.weights.append(weights[place])
                self._found.append((row, each))
            else:
                self.num_lost += 1
        return kept

    @property
    def regions(self) -> Regions:
        """What is known of those that are kept."""
        return Regions(
            row=tuple(row for row, _ in self._found),
            image=tuple(each.image for _, each in self._found),
            boxes=tuple(each.box for _, each in self._found),
            object_ids=tuple(each.object_id for _, each in self._found),
            texts=tuple(each.text for _, each in self._found),
            kinds=tuple(each.kind for _, each in self._found),
            negatives=tuple(each.negatives for _, each in self._found),
            positives=tuple(each.positives for _, each in self._found),
            num_tokens=tuple(int(own.count_nonzero()) for own in self.weights),
            coverage=tuple(torch.stack([own.sum() for own in self.weights]).tolist()) if self.weights else (),
        )
