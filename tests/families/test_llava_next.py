"""LLaVA-NeXT: tiles are padded away and back, the newline belongs to the projector."""

from __future__ import annotations

from typing import Any

import torch

from batches import image_tensors
from mllm_align.families import family_of
from tiny import tiny


def test_join_keeps_the_tiles_and_sizes_of_each_image(pictures: list[Any]) -> None:
    model, processor = tiny("llava_next")
    images = [image_tensors(model, processor, picture) for picture in pictures]
    tiles = [image["pixel_values"].shape[1] for image in images]
    assert len(set(tiles)) > 1, "pictures of one number of tiles would not test the padding"
    joined = family_of(model).join_images(images)
    assert joined["pixel_values"].shape[:2] == (len(pictures), max(tiles))
    assert joined["image_sizes"].tolist() == [[picture.height, picture.width] for picture in pictures]
    for row, (image, count) in enumerate(zip(images, tiles, strict=True)):
        assert torch.equal(joined["pixel_values"][row, :count], image["pixel_values"][0])
        assert not joined["pixel_values"][row, count:].any()


def test_tokens_are_base_view_and_unpadded_rows_with_newlines(pictures: list[Any]) -> None:
    model, processor = tiny("llava_next")
    family = family_of(model)
    images = [image_tensors(model, processor, picture) for picture in pictures]
    tokens = family.encode_images(model, images).tokens
    # 56 x 56: the pinpoint that wastes least is 56 x 112, of which the middle 4 x 4 patches hold the picture.
    assert len(tokens[3]) == 16 + 4 * (4 + 1)
    newline = model.model.image_newline
    assert all(torch.equal(tokens[3][16 + 5 * row + 4], newline) for row in range(4))


def test_newline_is_in_the_scope_of_the_projector() -> None:
    model, _ = tiny("llava_next")
    assert family_of(model).scope_of("model.image_newline") == "projector"
    assert "model.image_newline" in dict(model.named_parameters())
