"""LLaVA-NeXT: a base view and a grid of tiles, unpadded, with a learned newline after each row of patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mllm_align.families.llava import Llava
from mllm_align.families.padding import pad_tiles


@dataclass(frozen=True, kw_only=True)
class LlavaNext(Llava):
    """LLaVA with tiles: `pixel_values` (1, tiles, 3, h, w) and `image_sizes` (1, 2), original height and width."""

    def join_images(self, images: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Tiles padded to the longest image; the model finds each image's number of tiles by its size."""
        return {
            "pixel_values": pad_tiles([image["pixel_values"] for image in images]),
            "image_sizes": torch.cat([image["image_sizes"] for image in images]),
        }

    def scope_of(self, name: str) -> str | None:
        """As everywhere; the newline embedding was trained with the projector and belongs to it."""
        return "projector" if name == "model.image_newline" else super().scope_of(name)


LLAVA_NEXT = LlavaNext(
    name="LLaVA-NeXT",
    model_types=("llava_next",),
    image_keys=("pixel_values", "image_sizes"),
    image_tokens="base view, tiles without their padding, a newline per row",
)
