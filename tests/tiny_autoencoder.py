"""A tiny masked autoencoder with its decoder, in a folder as they are published."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import ViTImageProcessorPil, ViTMAEConfig, ViTMAEForPreTraining

SIDE, PATCH = 32, 8


def save_autoencoder(folder: Path, *, seed: int = 0) -> Path:
    """With 4 x 4 patches of 8 pixels, and weights so large that other pixels give other features."""
    torch.manual_seed(seed)
    config = ViTMAEConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        decoder_hidden_size=32,
        decoder_intermediate_size=64,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        norm_pix_loss=True,
    )
    model = ViTMAEForPreTraining(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.requires_grad:
                parameter.normal_(0, 1 / parameter[0].numel() ** 0.5)
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder
