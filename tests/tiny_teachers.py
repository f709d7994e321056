"""Tiny teachers beside those of `tiny_encoders`: RADIO, ConvNeXt and LayoutLMv3, in folders as they are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import (
    ConvNextConfig,
    ConvNextImageProcessorPil,
    ConvNextModel,
    LayoutLMv3Config,
    LayoutLMv3ImageProcessorPil,
    LayoutLMv3Model,
    LayoutLMv3Tokenizer,
    RadioConfig,
    RadioModel,
)

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def save_teacher(kind: str, folder: Path, *, seed: int = 0) -> Path:
    """A folder with a tiny "radio", "convnext" or "layoutlmv3"; weights so large that inputs matter."""
    torch.manual_seed(seed)
    for part in {"radio": radio, "convnext": convnext, "layoutlmv3": layoutlmv3}[kind]():
        if isinstance(part, torch.nn.Module):
            with torch.no_grad():
                for parameter in part.parameters():
                    if parameter.dim() > 1:
                        parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
        part.save_pretrained(folder)  # type: ignore[operator]
    return folder


def radio() -> tuple[Any, ...]:
    config = RadioConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=16, max_img_size=128
    )
    return (RadioModel(config),)


def convnext() -> tuple[Any, ...]:
    config = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=4)
    return ConvNextModel(config), ConvNextImageProcessorPil(size={"shortest_edge": 64})


def layoutlmv3(positions: int = 66) -> tuple[Any, ...]:
    """Every byte is a token, and 62 of them are read at a time (positions less the padding's two and the two ends)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {token: number for number, token in enumerate((*SPECIAL, *alphabet))}
    config = LayoutLMv3Config(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        coordinate_size=6,
        shape_size=4,
        input_size=64,
        patch_size=16,
        max_position_embeddings=positions,
        pad_token_id=1,
    )
    square = {"height": 64, "width": 64}
    return (
        LayoutLMv3Model(config),
        LayoutLMv3Tokenizer(vocab=words, merges=[]),
        LayoutLMv3ImageProcessorPil(size=square, apply_ocr=False),
    )
