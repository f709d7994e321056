"""Tiny vision encoders beside those of `tiny_encoders` and `tiny_teachers`, in folders as they are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BitImageProcessorPil,
    ConvNextImageProcessorPil,
    ConvNextV2Config,
    ConvNextV2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    ViTImageProcessorPil,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from tiny_encoders import ENCODERS, SMALL, WORDS, save_encoder
from tiny_parts import SIGLIP
from tiny_teachers import save_teacher

STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
SQUARE = {"height": 64, "width": 64}
IMAGENET: dict[str, Any] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def registers() -> tuple[Any, Any]:
    config = Dinov2WithRegistersConfig(**SMALL, image_size=56, patch_size=14, num_register_tokens=4)
    return Dinov2WithRegistersModel(config), BitImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, **IMAGENET
    )


def dinov3() -> tuple[Any, Any]:
    config = DINOv3ViTConfig(**SMALL, image_size=64, patch_size=16, num_register_tokens=4)
    return DINOv3ViTModel(config), ViTImageProcessorPil(size=SQUARE, **IMAGENET)


def dinov3_convnext() -> tuple[Any, Any]:
    return DINOv3ConvNextModel(DINOv3ConvNextConfig(**STAGES, image_size=64)), ViTImageProcessorPil(size=SQUARE)


def convnextv2() -> tuple[Any, Any]:
    config = ConvNextV2Config(**STAGES, num_stages=4, patch_size=4, image_size=64)
    return ConvNextV2Model(config), ConvNextImageProcessorPil(size={"shortest_edge": 64})


def mae() -> tuple[Any, Any]:
    """With its decoder and a mask over three quarters of an image, as it is published."""
    decoder = {
        "decoder_hidden_size": 32,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 32,
    }
    config = ViTMAEConfig(**SMALL, **decoder, image_size=64, patch_size=16, mask_ratio=0.75)
    return ViTMAEForPreTraining(config), ViTImageProcessorPil(size=SQUARE, **IMAGENET)


def siglip2() -> tuple[Any, Any]:
    """The kind that reads packed patches of images of any shape."""
    vision = {name: value for name, value in SIGLIP.items() if name != "image_size"}
    config = Siglip2Config(text_config=WORDS, vision_config=vision | {"num_patches": 16})
    return Siglip2Model(config), Siglip2ImageProcessorPil(patch_size=16, max_num_patches=16)


FURTHER = {
    "registers": registers,
    "dinov3": dinov3,
    "dinov3_convnext": dinov3_convnext,
    "convnextv2": convnextv2,
    "mae": mae,
    "siglip2": siglip2,
}


def save_further(name: str, folder: Path, *, seed: int = 0) -> Path:
    """A folder with one of those here, of `tiny_encoders`, or "radio" or "convnext"; weights as there."""
    if name in ENCODERS:
        return save_encoder(name, folder, seed=seed)
    if name not in FURTHER:
        return save_teacher(name, folder, seed=seed)
    torch.manual_seed(seed)
    model, processor = FURTHER[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
