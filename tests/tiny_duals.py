"""Tiny dual encoders with both their sides and processors, in folders as they are published; and rows for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
)

from tiny_parts import CLIP, SIGLIP

LENGTH = 8
COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (45, 85, 230), "yellow": (238, 212, 40)}
WORDS = ["<pad>", "<unk>", "</s>", "a", "bright", "dark", "small", "large", "square", *COLOURS]
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
    "vocab_size": len(WORDS),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tokenizer(**settings: Any) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", **settings
    )


def dual(name: str) -> tuple[Any, Any]:
    """`clip` or `siglip`, with the tower of the tiny LVLMs."""
    if name == "clip":
        config = CLIPConfig(text_config=TEXT, vision_config=dict(CLIP), projection_dim=24)
        image = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
        return CLIPModel(config), CLIPProcessor(image, tokenizer(model_max_length=LENGTH))
    config = SiglipConfig(text_config=TEXT | {"projection_size": SIGLIP["hidden_size"]}, vision_config=dict(SIGLIP))
    image = SiglipImageProcessorPil(size={"height": 64, "width": 64})
    return SiglipModel(config), SiglipProcessor(image, tokenizer(model_input_names=["input_ids"]))


def save_dual(name: str, folder: Path, *, seed: int = 0) -> Path:
    """A folder with weights so large that other pixels and words give another vector."""
    torch.manual_seed(seed)
    model, processor = dual(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def captioned(count: int) -> list[dict[str, Any]]:
    """Squares of four colours, small or large, bright or dark: sixteen captions, no picture twice."""
    rows = []
    for number in range(count):
        colour = tuple(COLOURS)[number % 4]
        size, light = ("small", "large")[number // 4 % 2], ("bright", "dark")[number // 8 % 2]
        ground = 250 - number % 16 - number // 16 if light == "bright" else 20 + number % 16 + number // 16
        image = Image.new("RGB", (64, 64), (ground,) * 3)
        side = 16 if size == "small" else 40
        image.paste(COLOURS[colour], (10, 10, 10 + side, 10 + side))
        rows.append({"image": image, "prompt": "What?", "chosen": f"a {size} {colour} square {light}"})
    return rows
