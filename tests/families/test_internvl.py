"""InternVL: tiles and a thumbnail per image, cut apart again after one vision pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from batches import image_tensors, prompt_inputs
from mllm_align.families import EncodedImages, family_of
from tiny import tiny

TOKENS_PER_TILE = 4


@pytest.mark.parametrize(("fewest", "most"), [(1, 1), (1, 4), (2, 6)])
def test_tokens_are_those_of_the_tiles_and_the_thumbnail(fewest: int, most: int, pictures: list[Any]) -> None:
    model, processor = tiny("internvl")
    processor.image_processor.min_patches, processor.image_processor.max_patches = fewest, most
    images = [image_tensors(model, processor, picture) for picture in pictures]
    tiles = [len(image["pixel_values"]) for image in images]
    assert min(tiles) >= fewest
    assert max(tiles) <= most + 1
    assert (len(set(tiles)) > 1) == (most > 1), "pictures of one number of tiles would not test the cutting"
    with torch.no_grad():
        tokens = family_of(model).encode_images(model, images).tokens
    assert [len(entry) for entry in tokens] == [TOKENS_PER_TILE * count for count in tiles]
    for image, entry in zip(images, tokens, strict=True):
        with torch.no_grad():
            plain = model.model.get_image_features(image["pixel_values"], return_dict=True).pooler_output
        torch.testing.assert_close(entry, plain.flatten(0, 1), atol=1e-5, rtol=0)


def test_tags_are_around_each_image(pictures: list[Any]) -> None:
    _, processor = tiny("internvl")
    ids = prompt_inputs(processor, "Which?", [pictures[3], pictures[3]])["input_ids"][0]
    image = "<img>" + "<IMG_CONTEXT>" * TOKENS_PER_TILE + "</img>\n"
    assert image * 2 + "Which?" in processor.tokenizer.decode(ids)


def test_entries_are_equally_long_and_hold_one_image_each() -> None:
    model, _ = tiny("internvl")
    tokens = tuple(torch.rand(TOKENS_PER_TILE * count, 8) for count in (3, 5, 1))
    family = family_of(model)
    mixed = family.mm_outputs(EncodedImages(tokens), (1, 0, 1))["image"].pooler_output
    assert mixed.shape == (13, TOKENS_PER_TILE, 8)
    assert torch.equal(mixed.flatten(0, 1), torch.cat([tokens[1], tokens[0], tokens[1]]))
    same = family.mm_outputs(EncodedImages(tokens), (0, 0))["image"].pooler_output
    assert same.shape == (2, 3 * TOKENS_PER_TILE, 8)
