"""What every test stands on: no network, fixed seeds, one thread, a few pictures, the folder of real data."""

from __future__ import annotations

import gc
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import set_seed

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    set_seed(0)


@pytest.fixture(scope="module", autouse=True)
def _what_is_loaded_stays() -> None:
    # Every training run looks for garbage, which among all that is imported and collected takes longer than its steps.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real annotation files."""
    folder = os.environ.get("MLLM_ALIGN_DATA")
    if not folder:
        pytest.skip("MLLM_ALIGN_DATA is not set: no real data files to read")
    return Path(folder)


def draw_picture(width: int, height: int, colour: tuple[int, int, int], seed: int) -> Image.Image:
    """A coloured disc on a noisy gradient, so that no two places look alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 * x / width, 255 * y / height, 128 + 0 * x], axis=-1)
    pixels += rng.normal(0, 20, pixels.shape)
    inside = (x - width * 0.4) ** 2 + (y - height * 0.6) ** 2 < (min(width, height) * 0.3) ** 2
    pixels[inside] = colour
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Four RGB pictures that differ in size, shape and content."""
    return [
        draw_picture(80, 60, (220, 30, 30), 0),
        draw_picture(60, 120, (30, 200, 60), 1),
        draw_picture(150, 70, (40, 60, 220), 2),
        draw_picture(56, 56, (230, 220, 40), 3),
    ]
