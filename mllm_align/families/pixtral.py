"""Models with a Pixtral tower: Mistral3, and LLaVA's class as Pixtral-12B uses it. Images keep size and shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mllm_align.families.grids import Grid, grid
from mllm_align.families.llava import Llava
from mllm_align.families.padding import pad_sides


@dataclass(frozen=True, kw_only=True)
class Pixtral(Llava):
    """Per image `pixel_values` (1, 3, h, w) and `image_sizes` (1, 2), its height and width once resized."""

    def join_images(self, images: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Images padded to the highest and widest; the tower cuts the padding off by the sizes."""
        return {
            "pixel_values": pad_sides([image["pixel_values"] for image in images]),
            "image_sizes": torch.cat([image["image_sizes"] for image in images]),
        }

    def tower_views(self, config: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """Without the padding."""
        views = super().tower_views(config, args, kwargs)
        sizes = torch.as_tensor(kwargs["image_sizes"]).tolist()
        return [view[:, :height, :width] for view, (height, width) in zip(views, sizes, strict=True)]

    def cells(self, config: Any, pixels: Tensor) -> tuple[int, int]:
        """Patches, less those that are merged into one."""
        rows, columns = self.read_cells(config, pixels)
        merged = getattr(config, "spatial_merge_size", 1)
        return rows // merged, columns // merged

    def token_grids(
        self, image: Mapping[str, Tensor], size: tuple[int, int], image_processor: Any, config: Any
    ) -> tuple[Grid, ...]:
        """The whole image, squashed to whole tokens."""
        side = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
        height, width = image["image_sizes"][0].tolist()
        return (grid(height // side, width // side),)


_TOKENS = "a break ends each row of its tokens: the processor cannot be told another number"
_PROCESSOR = "the stock processor as it is loaded (torchvision)"

PIXTRAL = Pixtral(
    name="Pixtral",
    model_types=("llava",),
    vision_type="pixtral",
    image_keys=("pixel_values", "image_sizes"),
    fixed_tokens=_TOKENS,
    image_tokens="by size, one per patch, `[IMG_BREAK]` after each row, `[IMG_END]` after the last",
    untested=_PROCESSOR,
)
MISTRAL3 = Pixtral(
    name="Mistral3",
    model_types=("mistral3",),
    image_keys=("pixel_values", "image_sizes"),
    fixed_tokens=_TOKENS,
    image_tokens="by size, one per 2 x 2 patches, `[IMG_BREAK]` after each row, `[IMG_END]` after the last",
    untested=_PROCESSOR,
)
