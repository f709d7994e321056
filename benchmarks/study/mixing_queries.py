"""What X-Former's paper begins with, in small: a masked autoencoder, and queries that learned from captions and it.

The autoencoder is MAE (He et al. 2022, https://arxiv.org/abs/2111.06377) with its decoder; its patches are half as
wide as those of the other towers, so that a hidden one is part of a thing of which it sees other parts. The queries
have had the first stage of `mllm-align x-former` with it and with the tower of the base model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import LlavaProcessor, ViTMAEConfig, ViTMAEForPreTraining

import mixing_towers as towers
from mixing_arms import MIXERS, STAGED_OPTIONS
from mixing_towers import VISION, WIDTH, Pictures, normalised, optimised, seeded, step
from mllm_align.data.world import caption_rows
from mllm_align.trainers.x_former import XFormerConfig, train_x_former

PATCH, MASK_RATIO = 8, 0.5
MASKED_PATCHES = (VISION["image_size"] // PATCH) ** 2
MASKED_STEPS, MASKED_RATE = 1500, 2e-3
NUM_CAPTIONS, CAPTION_BATCH, CAPTION_STEPS, CAPTION_RATE = 16000, 64, 1500, 1e-3
LONGEST = 40  # tokens of a caption


def train_masked(processor: LlavaProcessor, shown: Pictures, steps: int, seed: int) -> Iterator[tuple[Any, float]]:
    """An autoencoder that draws again the patches that were hidden from it, with the loss of each step."""
    config = ViTMAEConfig(
        **{**VISION, "patch_size": PATCH},
        intermediate_size=3 * WIDTH,
        decoder_hidden_size=WIDTH,
        decoder_intermediate_size=3 * WIDTH,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=VISION["num_attention_heads"],
        mask_ratio=MASK_RATIO,
    )
    model: Any = seeded(lambda: ViTMAEForPreTraining(config), seed).train()
    rng, generator = Random(f"masked {seed}"), torch.Generator().manual_seed(seed)
    for optimizer, schedule in optimised(model, steps, MASKED_RATE):
        chosen = rng.sample(range(len(shown.scenes)), towers.BATCH)
        pixels = normalised(shown.pixels[chosen, rng.randrange(shown.pixels.shape[1])], processor)
        loss = model(pixels, noise=torch.rand(len(pixels), MASKED_PATCHES, generator=generator)).loss
        step(model, loss, optimizer, schedule)
        yield model, loss.item()


def train_queries(llava: Path, masked: Path, folder: Path, seed: int) -> None:
    """The first stage of X-Former, into a folder."""
    options = MIXERS["x_former"] | STAGED_OPTIONS
    settings: dict[str, Any] = {
        **{name: value for name, value in options.items() if name != "detail_cells"},
        "output_dir": str(folder),
        "max_text_length": LONGEST,
        "text_column": "caption",
        "max_steps": CAPTION_STEPS,
        "per_device_train_batch_size": CAPTION_BATCH,
        "learning_rate": CAPTION_RATE,
        "seed": seed,
        "save_strategy": "no",
        "logging_steps": 50,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    rows = caption_rows(NUM_CAPTIONS, seed, num_negatives=1)
    train_x_former(llava, str(masked), rows, XFormerConfig(**settings), dtype="float32")
