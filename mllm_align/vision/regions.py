"""The weights of a row's objects over the tokens of their image, as the collator asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mllm_align.families import Family
from mllm_align.vision.geometry import box_weights, mask_weights, roi_align_weights

BOX_WEIGHTS = {"coverage": box_weights, "roi_align": roi_align_weights}


class Encoded(Protocol):
    """A processed image: its tensors, and (width, height) of the upright original."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The processor's outputs."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        ...


class Located(Protocol):
    """Where an object is."""

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom as shares."""
        ...

    @property
    def mask(self) -> Any:
        """(height, width) from 0 to 1, or None."""
        ...


@dataclass(frozen=True)
class RegionWeights:
    """Weights of objects over image tokens, by a family's geometry; picklable.

    Args:
        family: Of the model.
        image_processor: The one that processes the images.
        config: The model's.
        copies: Tokens in each cell, one behind the other, where a mixer makes several; None where its tokens lie
            nowhere.
        pooling: "coverage", or "roi_align" for boxes; a mask is always weighted by what it covers.
    """

    family: Family
    image_processor: Any
    config: Any
    pooling: str = "coverage"
    copies: int | None = 1

    def __call__(self, image: Encoded, objects: Sequence[Located]) -> Tensor:
        """(objects, T) float32: the weight of each of the image's first T tokens in each; the others have none.

        Raises:
            ValueError: If the model's image tokens lie nowhere.
        """
        if self.copies is None:
            raise ValueError(
                "the mixer's tokens are of the whole image, so objects on it have none of their own: use a mixer that "
                "keeps the grid, or an objective without regions"
            )
        grids = self.family.token_grids(image.tensors, image.size, self.image_processor, self.config)
        num_tokens = max(grid.stop for grid in grids)
        weigh = BOX_WEIGHTS[self.pooling]
        found = weigh(torch.tensor([each.box for each in objects], dtype=torch.float64), grids, num_tokens)
        for number, each in enumerate(objects):
            if each.mask is not None:
                found[number] = mask_weights(torch.from_numpy(np.asarray(each.mask))[None], grids, num_tokens)[0]
        if self.copies in (1, None):
            return found
        first = grids[0].start
        return torch.cat([found[:, :first], found[:, first:].repeat_interleave(self.copies or 1, dim=1)], dim=1)
