"""LLaVA-1.5 and its kin: a CLIP tower, a two-layer projector, one token per patch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mllm_align.families.base import Family
from mllm_align.families.grids import Grid, grid, side


@dataclass(frozen=True, kw_only=True)
class Llava(Family):
    """A family that reads an inner layer of its tower."""

    def lora_targets(self, model: nn.Module, scopes: Sequence[str] = ("language",)) -> list[str]:
        """As everywhere, less the tower's layers behind the one that is read.

        Adapters there would never get a gradient: dead weight on one device, an error under DDP.
        """
        config: Any = model.config
        layers = config.vision_feature_layer
        depth = config.vision_config.num_hidden_layers
        # Of the tower's depth + 1 hidden states, number i is the output of layer i - 1.
        used = max(layer % (depth + 1) for layer in ([layers] if isinstance(layers, int) else layers))
        layer_of = re.compile(rf"{re.escape(self.tower)}\..*\.layers?\.(\d+)\.")

        def is_read(name: str) -> bool:
            found = layer_of.match(name)
            return int(found.group(1)) < used if found else self.scope_of(name) != "vision"

        return [name for name in super().lora_targets(model, scopes) if is_read(name)]

    def set_view_tokens(self, processor: Any, tokens: int, cells: tuple[int, int]) -> None:
        """By what it adds to the number of patches."""
        if self.fixed_tokens:
            raise ValueError(self.fixed_tokens)
        less = processor.vision_feature_select_strategy == "default"
        processor.num_additional_image_tokens = tokens - cells[0] * cells[1] + less

    def token_grids(
        self, image: Mapping[str, Tensor], size: tuple[int, int], image_processor: Any, config: Any
    ) -> tuple[Grid, ...]:
        """One view, by the processor's own flags: padded to a square, squashed, or its middle alone."""
        cells = self.cells(config, image["pixel_values"])
        return (grid(*cells, shown_area(size, image_processor), num_class_tokens(config)),)


def num_class_tokens(config: Any) -> int:
    """How many tokens come before those of the patches: CLIP's class token, where it is not dropped."""
    keeps_all = getattr(config, "vision_feature_select_strategy", "default") == "full"
    return int(keeps_all and config.vision_config.model_type == "clip_vision_model")


def shown_area(size: tuple[int, int], image_processor: Any) -> tuple[float, float, float, float]:
    """What of an image (width, height) its one view shows, as CLIP's and LLaVA's image processors make it."""
    width, height = size
    left, top, right, bottom = 0, 0, width, height
    if getattr(image_processor, "do_pad", False):
        longest = max(size)
        left, top = -((longest - width) // 2), -((longest - height) // 2)
        right, bottom = left + longest, top + longest
    across, down = right - left, bottom - top
    if not getattr(image_processor, "do_center_crop", False):
        return left / width, top / height, right / width, bottom / height
    new_width, new_height = _resized((across, down), image_processor)
    crop_width, crop_height = (side(image_processor.crop_size, name) for name in ("width", "height"))
    x, y = (new_width - crop_width) // 2, (new_height - crop_height) // 2
    shown = (x, x + crop_width), (y, y + crop_height)
    xs = [(left + value / new_width * across) / width for value in shown[0]]
    ys = [(top + value / new_height * down) / height for value in shown[1]]
    return xs[0], ys[0], xs[1], ys[1]


def _resized(size: tuple[int, int], image_processor: Any) -> tuple[int, int]:
    """Width and height before the crop."""
    shortest = side(image_processor.size, "shortest_edge")
    if not image_processor.do_resize:
        return size
    if shortest is None:
        return side(image_processor.size, "width"), side(image_processor.size, "height")
    longest = int(shortest * max(size) / min(size))
    return (longest, shortest) if size[0] > size[1] else (shortest, longest)


LLAVA = Llava(name="LLaVA-1.5", model_types=("llava",), image_tokens="one per patch of one square view")
