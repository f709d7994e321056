"""LLaVA-OneVision: LLaVA-NeXT's views and newlines, shrunk above a number of tiles; one view each in image series."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mllm_align.families.base import image_entries
from mllm_align.families.llava_next import LlavaNext


@dataclass(frozen=True, kw_only=True)
class LlavaOnevision(LlavaNext):
    """LLaVA-NeXT with `batch_num_images` (1,): how many images the prompt has, for an image of which it was made.

    An image alone in its prompt is cut into tiles, one of several is not. The model knows the two apart by the number
    of images that it is told for each prompt, so those of several go last, as one prompt's.
    """

    def join_images(self, images: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """As LLaVA-NeXT, images alone in their prompt first."""
        alone = sum(map(_is_alone, images))
        # A prompt of two images of which only one is there: the model asks no more than whether there is one.
        several = [max(2, len(images) - alone)] if alone < len(images) else []
        joined = super().join_images([images[index] for index in _order(images)])
        return joined | {"batch_num_images": torch.tensor([1] * alone + several)}

    def split_tokens(self, output: BaseModelOutputWithPooling, images: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
        """Per image, in the order given."""
        tokens = dict(zip(_order(images), image_entries(output), strict=True))
        return [tokens[index] for index in range(len(images))]

    def has_tiles(self, image: Mapping[str, Tensor]) -> bool:
        """As LLaVA-NeXT, of images alone in their prompt."""
        return super().has_tiles(image) and _is_alone(image)

    def shrunk(self, rows: int, columns: int, config: Any) -> tuple[int, int]:
        """Fewer where the tiles have more tokens than the model's limit, "anyres_max_9" for that of nine tiles."""
        height = config.vision_config.image_size // config.vision_config.patch_size
        most = int(config.vision_aspect_ratio.removeprefix("anyres_max_")) * height**2
        ratio = math.sqrt(rows * columns / most)
        return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)


def _is_alone(image: Mapping[str, Tensor]) -> bool:
    return int(image["batch_num_images"]) == 1


def _order(images: Sequence[Mapping[str, Tensor]]) -> list[int]:
    """Indices of the images that are alone in their prompt, then of the others."""
    return sorted(range(len(images)), key=lambda index: not _is_alone(images[index]))


LLAVA_ONEVISION = LlavaOnevision(
    name="LLaVA-OneVision",
    model_types=("llava_onevision",),
    image_keys=("pixel_values", "image_sizes", "batch_num_images"),
    fixed_tokens="its tokens are laid out over tiles with newlines: the processor cannot be told another number",
    image_tokens="base view, tiles without their padding, shrunk to at most `anyres_max` tiles, a newline per row; "
    "in prompts of several images a view and a newline each",
    untested="the stock processor with its video half (torchvision)",
)
