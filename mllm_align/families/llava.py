"""LLaVA-1.5 and its kin: a CLIP tower, a two-layer projector, one token per patch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from mllm_align.families.base import Family


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


LLAVA = Llava(name="LLaVA-1.5", model_types=("llava",), image_tokens="one per patch of one square view")
