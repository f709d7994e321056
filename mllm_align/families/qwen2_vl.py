"""Qwen2-VL and Qwen2.5-VL: images of any size, a merger inside the tower, three rows of rotary positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mllm_align.families.base import Family, inner
from mllm_align.families.grids import Grid, grid


@dataclass(frozen=True, kw_only=True)
class QwenVL(Family):
    """A family with M-RoPE: time, height and width of an image token have positions of their own."""

    position_rows: ClassVar[int] = 3

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
    image_keys=("pixel_values", "image_grid_thw"),
    token_keys=("mm_token_type_ids",),
    image_tokens="by size (`min_pixels` to `max_pixels`), one per 2 x 2 patches",
    untested="the stock processor with its video half (torchvision)",
)
