"""Entries of equal length, cut apart again and laid side by side, for every family that has them."""

from __future__ import annotations

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mllm_align.families import FAMILIES, EncodedImages
from mllm_align.families.tiles import Tiled

TOKENS = 4
TILED = [family for family in FAMILIES if isinstance(family, Tiled)]


@pytest.mark.parametrize("family", TILED, ids=[family.name for family in TILED])
def test_entries_go_to_their_images(family: Tiled) -> None:
    counts = (3, 1, 2)
    output = BaseModelOutputWithPooling(pooler_output=torch.rand(sum(counts), TOKENS, 8))
    images = [{"pixel_values": torch.zeros(count, 3, 2, 2)} for count in counts]
    tokens = family.split_tokens(output, images)
    assert [entry.shape for entry in tokens] == [(TOKENS * count, 8) for count in counts]
    assert torch.equal(torch.cat(tokens), output.pooler_output.flatten(0, 1))


@pytest.mark.parametrize("family", TILED, ids=[family.name for family in TILED])
def test_entries_are_equally_long_and_hold_one_image_each(family: Tiled) -> None:
    tokens = tuple(torch.rand(TOKENS * count, 8) for count in (3, 5, 1))
    mixed = family.mm_outputs(EncodedImages(tokens), (1, 0, 1))["image"].pooler_output
    assert mixed.shape == (13, TOKENS, 8)
    assert torch.equal(mixed.flatten(0, 1), torch.cat([tokens[1], tokens[0], tokens[1]]))
    assert family.mm_outputs(EncodedImages(tokens), (0, 0))["image"].pooler_output.shape == (2, 3 * TOKENS, 8)
