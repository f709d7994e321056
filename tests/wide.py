"""LLaVA with a language model of more than one width: what is wrong in a tiny one may cancel out there."""

from __future__ import annotations

import copy
from typing import Any

import torch

from tiny import tiny


def wide_llava(key_heads: int = 8, layers: int = 4) -> tuple[Any, Any]:
    """Model (float32, random weights) and processor; every layer is 256 wide and 688 inside."""
    model, processor = tiny("llava")
    config = copy.deepcopy(model.config)
    shape = {"hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 8, "head_dim": 32}
    for name, value in (shape | {"num_hidden_layers": layers, "num_key_value_heads": key_heads}).items():
        setattr(config.text_config, name, value)
    torch.manual_seed(0)
    return type(model)._from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval(), processor
