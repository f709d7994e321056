"""Tiny models with a mixer, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mllm_align.families import family_of
from mllm_align.vision.attach import attach
from mllm_align.vision.encoder_spec import Encoder
from mllm_align.vision.mixed_vision import MixedVision
from mllm_align.vision.mixers import MIXERS, Map
from tiny import tiny

# Small options of every kind, each of which has all of its parts.
OPTIONS: dict[str, dict[str, Any]] = {
    "additive": {"norm": "layer"},
    "interleave": {},
    "concat": {},
    "gated": {},
    "window": {"window": 2},
    "sva": {"width": 32, "heads": 4, "depth": 2, "windows": 2},
    "x_former": {"num_queries": 6, "width": 32, "depth": 2, "heads": 4},
}
assert OPTIONS.keys() == MIXERS.keys()


def mixed_tiny(family: str, kind: str, encoder: Path | dict[str, Any], **options: Any) -> tuple[Any, Any, MixedVision]:
    """A tiny model, its processor (padding on the left) and the mixer that is attached."""
    model, processor = tiny(family)
    processor.tokenizer.padding_side = "left"
    torch.manual_seed(0)
    spec = encoder if isinstance(encoder, dict) else str(encoder)
    mixed = attach(model, {"kind": kind, **OPTIONS[kind], **options}, [spec], processor)
    return model, processor, mixed


def shake(mixed: MixedVision, seed: int = 0) -> None:
    """Gives every weight of a mixer another value, gates too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in mixed.mixer.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(parameter))


def prompts(processor: Any, pictures: list[Image.Image]) -> dict[str, Tensor]:
    """Two prompts of unequal length, each with a picture, as one batch."""
    texts = [f"{processor.image_token}What is it?", f"{processor.image_token}Is the star left of the red square?"]
    return dict(processor(text=texts, images=[[pictures[0]], [pictures[1]]], padding=True, return_tensors="pt"))


def tokens_of(model: Any, processor: Any, picture: Image.Image) -> Tensor:
    """(T, d): what the language model reads of a picture."""
    made = processor(text=[processor.image_token], images=[picture], return_tensors="pt")
    family = family_of(model)
    image = {key: made[key] for key in (*family.image_keys, "extra_pixel_values") if key in made}
    with torch.no_grad():
        return family.encode_images(model, [image]).tokens[0]


class Means(nn.Module):
    """An encoder whose vector of a cell is the mean colour there and nothing else."""

    def __init__(self, pixels: str = "shared") -> None:
        super().__init__()
        self.spec, self.width = Encoder("means", pixels=pixels), 3  # type: ignore[arg-type]

    def forward(self, pixels01: Tensor, cells: tuple[int, int]) -> Map:
        """(V, cells, 3)"""
        return Map(nn.functional.adaptive_avg_pool2d(pixels01, cells).flatten(2).transpose(1, 2), cells)
