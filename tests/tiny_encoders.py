"""Tiny vision encoders with processors, made from their real config classes, in folders as they are published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

from tiny_parts import CLIP, SIGLIP

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
WORDS = SMALL | {"vocab_size": 64, "max_position_embeddings": 16}
CROP = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}


def clip() -> tuple[Any, Any]:
    config = CLIPConfig(text_config=WORDS, vision_config=dict(CLIP), projection_dim=24)
    return CLIPModel(config), CLIPImageProcessorPil(**CROP)


def siglip() -> tuple[Any, Any]:
    config = SiglipConfig(text_config=WORDS, vision_config=dict(SIGLIP))
    return SiglipModel(config), SiglipImageProcessorPil(size={"height": 64, "width": 64})


def dinov2() -> tuple[Any, Any]:
    return Dinov2Model(Dinov2Config(**SMALL, image_size=56, patch_size=14)), BitImageProcessorPil(**CROP)


def vit() -> tuple[Any, Any]:
    """Without a pooler, as classifiers are published."""
    model = ViTModel(ViTConfig(**SMALL, image_size=56, patch_size=14), add_pooling_layer=False)
    return model, BitImageProcessorPil(**CROP)


ENCODERS: dict[str, Callable[[], tuple[Any, Any]]] = {"clip": clip, "siglip": siglip, "dinov2": dinov2, "vit": vit}


def save_encoder(name: str, folder: Path, *, seed: int = 0) -> Path:
    """A folder with weights so large that other pixels give another vector."""
    torch.manual_seed(seed)
    model, processor = ENCODERS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def naive(name: str, folder: Path, images: Sequence[Image.Image]) -> torch.Tensor:
    """(N, d) of length 1, float64: the model's own class, one image at a time."""
    processor = AutoImageProcessor.from_pretrained(folder)
    if name in ("clip", "siglip"):
        model = {"clip": CLIPModel, "siglip": SiglipModel}[name].from_pretrained(folder).eval()
        read = lambda pixels: model.get_image_features(pixel_values=pixels).pooler_output  # noqa: E731
    else:
        model = {"dinov2": Dinov2Model, "vit": ViTModel}[name].from_pretrained(folder).eval()
        read = lambda pixels: model(pixel_values=pixels).last_hidden_state[:, 0]  # noqa: E731
    with torch.no_grad():
        found = torch.cat([read(processor(image, return_tensors="pt")["pixel_values"]) for image in images]).double()
    return found / found.norm(dim=1, keepdim=True)
