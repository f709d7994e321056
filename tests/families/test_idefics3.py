"""Idefics3 and SmolVLM: one image per entry, zero tiles are dropped by the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from batches import image_tensors, prompt_inputs
from mllm_align.families import family_of
from tiny import tiny

NAMES = ("idefics3", "smolvlm")
TOKENS_PER_TILE = 4


@pytest.mark.parametrize("name", NAMES)
def test_tiles_are_padded_and_dropped(name: str, pictures: list[Any]) -> None:
    model, processor = tiny(name)
    family = family_of(model)
    small = Image.new("RGB", (10, 10), (200, 20, 60))
    images = [image_tensors(model, processor, picture) for picture in (*pictures, small)]
    tiles = [image["pixel_values"].shape[1] for image in images]
    assert len(set(tiles)) > 1, "pictures of one number of tiles would not test the padding"
    joined = family.join_images(images)
    assert joined["pixel_values"].shape[:2] == joined["pixel_attention_mask"].shape[:2] == (len(tiles), max(tiles))
    with torch.no_grad():
        tokens = family.encode_images(model, images).tokens
    assert [len(entry) for entry in tokens] == [TOKENS_PER_TILE * count for count in tiles]


@pytest.mark.parametrize("name", NAMES)
def test_grey_and_black_tiles_are_not_taken_for_padding(name: str) -> None:
    model, processor = tiny(name)
    pictures = [Image.new("RGB", (64, 64), (level,) * 3) for level in (0, 127, 128, 255)]
    with torch.no_grad():
        images = [image_tensors(model, processor, picture) for picture in pictures]
        encoded = family_of(model).encode_images(model.bfloat16(), images)
    ids = prompt_inputs(processor, "?", pictures)["input_ids"]
    assert sum(len(tokens) for tokens in encoded.tokens) == (ids == model.config.image_token_id).sum()


@pytest.mark.parametrize("name", NAMES)
def test_splitting_off_gives_one_tile(name: str, pictures: list[Any]) -> None:
    model, processor = tiny(name)
    processor.image_processor.do_image_splitting = False
    images = [image_tensors(model, processor, picture) for picture in pictures]
    with torch.no_grad():
        tokens = family_of(model).encode_images(model, images).tokens
    assert [len(entry) for entry in tokens] == [TOKENS_PER_TILE] * len(pictures)
