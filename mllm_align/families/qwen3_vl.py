"""Qwen3-VL: Qwen2-VL with deepstack, visual features that are added behind each of the decoder's first layers.

The experts of `qwen3_vl_moe` are no linear layers but three-dimensional parameters: LoRA leaves them alone, and so
does 4-bit loading, which then saves much less memory than it does elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from mllm_align.families.qwen2_vl import ROPE, QwenVL


@dataclass(frozen=True, kw_only=True)
class Qwen3VL(QwenVL):
    """A Qwen-VL whose tower has a merger for each layer that it hands to the decoder, beside that of its output."""

    deepstack_mergers: str = "model.visual.deepstack_merger_list"

    def num_deepstack(self, config: Any) -> int:
        """As many as the tower hands over."""
        return len(config.vision_config.deepstack_visual_indexes)

    def projectors(self, model: nn.Module) -> list[str]:
        """The merger of the tower's output and those of its inner layers."""
        inner_mergers = self.module(model, self.deepstack_mergers)
        return [self.projector, *(f"{self.deepstack_mergers}.{name}" for name, _ in inner_mergers.named_children())]

    def scope_of(self, name: str) -> str | None:
        """As everywhere; the mergers of inner layers belong to the projector, as that of the output does."""
        return "projector" if name.startswith(f"{self.deepstack_mergers}.") else super().scope_of(name)


QWEN3_VL = Qwen3VL(
    name="Qwen3-VL",
    model_types=("qwen3_vl", "qwen3_vl_moe"),
    tower="model.visual",
    projector="model.visual.merger",
    projects_in_tower=True,
    first_linear="linear_fc1",
    fixed_tokens=ROPE,
    image_keys=("pixel_values", "image_grid_thw"),
    token_keys=("mm_token_type_ids",),
    image_tokens="by size (`min_pixels` to `max_pixels`), one per 2 x 2 patches, and deepstack features of as many",
    untested="the stock processor with its video half (torchvision)",
)
