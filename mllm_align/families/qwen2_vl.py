"""Qwen2-VL and Qwen2.5-VL: images of any size, a merger inside the tower, three rows of rotary positions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from mllm_align.families.base import Family, inner
from mllm_align.families.grids import Grid, grid

ROPE = "its rotary positions are counted from the image's own grid, which allows one token per 2 x 2 patches"


@dataclass(frozen=True, kw_only=True)
class QwenVL(Family):
    """A family with M-RoPE: time, height and width of an image token have positions of their own."""

    position_rows: ClassVar[int] = 3

    def tower_views(self, config: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """Put together again from patches, which are flat and ordered by blocks of those that are merged; exact."""
        patches, vision = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0], config.vision_config
        side, merged, frames = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        grids = kwargs["grid_thw"].tolist()
        views = []
        for image, (time, rows, columns) in zip(
            patches.split([math.prod(each) for each in grids]), grids, strict=True
        ):
            blocks = image.view(time, rows // merged, columns // merged, merged, merged, -1, frames, side, side)
            # Of an image all frames are alike.
            pixels = blocks.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(time * frames, -1, rows * side, columns * side)
            views.append(pixels[0])
        return views

    def cells(self, config: Any, pixels: Tensor) -> tuple[int, int]:
        """Patches, less those that are merged into one."""
        rows, columns = self.read_cells(config, pixels)
        merged = config.vision_config.spatial_merge_size
        return rows // merged, columns // merged

    def linear_order(self, config: Any, views: Sequence[Tensor]) -> Tensor | None:
        """Qwen2.5-VL's merger reads tokens window by window."""
        vision = config.vision_config
        if not hasattr(vision, "window_size"):
            return None
        sides = [self.read_cells(config, view) for view in views]
        grids = torch.tensor([(1, rows, columns) for rows, columns in sides])
        order, _ = get_vision_window_index(
            grids, vision.spatial_merge_size, window_size=vision.window_size, patch_size=vision.patch_size
        )
        return order.to(views[0].device)

    def prefix_positions(
        self,
        model: nn.Module,
        input_ids: Tensor,
        images: Sequence[Mapping[str, Tensor]],
        extras: Mapping[str, Tensor],
    ) -> Tensor:
        """(3, P) by the model's own `get_rope_index`; without an image all three rows count tokens."""
        if not images:
            return torch.arange(input_ids.numel(), device=input_ids.device).expand(3, -1)
        grid = torch.cat([image["image_grid_thw"] for image in images])
        positions, _ = inner(model).get_rope_index(
            input_ids.unsqueeze(0), extras["mm_token_type_ids"].unsqueeze(0), image_grid_thw=grid
        )
        return positions[:, 0]

    def token_grids(
        self, image: Mapping[str, Tensor], size: tuple[int, int], image_processor: Any, config: Any
    ) -> tuple[Grid, ...]:
        """The whole image, squashed to whole tokens; windows are put back into this order by the model."""
        _, rows, columns = image["image_grid_thw"][0].tolist()
        merged = config.vision_config.spatial_merge_size
        return (grid(rows // merged, columns // merged),)


QWEN2_VL = QwenVL(
    name="Qwen2-VL",
    model_types=("qwen2_vl",),
    tower="model.visual",
    projector="model.visual.merger",
    projects_in_tower=True,
    first_linear="mlp.0",
    fixed_tokens=ROPE,
    image_keys=("pixel_values", "image_grid_thw"),
    token_keys=("mm_token_type_ids",),
    image_tokens="by size (`min_pixels` to `max_pixels`), one per 2 x 2 patches",
    untested="the stock processor with its video half (torchvision)",
)
QWEN2_5_VL = QwenVL(
    name="Qwen2.5-VL",
    model_types=("qwen2_5_vl",),
    tower="model.visual",
    projector="model.visual.merger",
    projects_in_tower=True,
    first_linear="mlp.0",
    fixed_tokens=ROPE,
    image_keys=("pixel_values", "image_grid_thw"),
    token_keys=("mm_token_type_ids",),
    image_tokens="by size (`min_pixels` to `max_pixels`), one per 2 x 2 patches",
    untested="the stock processor with its video half (torchvision)",
)
