"""What the tiny models of all families are made of: one width, one vocabulary, two towers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerFast

WIDTH = 64
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
    "projection_dim": WIDTH,
}
SIGLIP = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 16,
}


@dataclass(frozen=True)
class Recipe:
    """How one family's tiny model is built.

    `adds_bos` is whether the tokenizer itself puts BOS in front; `named` are special tokens that it has as attributes.
    """

    model_class: str
    config: Callable[[PreTrainedTokenizerFast], Any]
    processor: Callable[[PreTrainedTokenizerFast, str], Any]
    template: str
    special: tuple[str, ...]
    bos: str | None
    eos: str
    pad: str
    adds_bos: bool
    not_quantized: tuple[str, ...]
    named: Mapping[str, str] = field(default_factory=dict)
    attention: str | Mapping[str, str] = "sdpa"


def vocabulary(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    return {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
