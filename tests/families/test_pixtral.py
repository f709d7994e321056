"""Pixtral towers: images of their own size, padded for one pass and cut again; LLaVA's class is told by its tower."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from batches import image_tensors, prompt_inputs
from mllm_align.families import family_of
from tiny import tiny

NAMES = pytest.mark.parametrize("name", ["pixtral", "mistral3"])


@NAMES
def test_images_are_padded_and_cut(name: str, pictures: list[Any]) -> None:
    model, processor = tiny(name)
    family = family_of(model)
    images = [image_tensors(model, processor, picture) for picture in pictures]
    sizes = [tuple(image["image_sizes"][0].tolist()) for image in images]
    assert len(set(sizes)) > 2, "pictures of one size would not test the padding"
    joined = family.join_images(images)
    assert joined["pixel_values"].shape[-2:] == tuple(max(side) for side in zip(*sizes, strict=True))
    assert [tuple(size) for size in joined["image_sizes"].tolist()] == sizes
    side = processor.patch_size * processor.spatial_merge_size
    with torch.no_grad():
        tokens = family.encode_images(model, images).tokens
        # Whatever lies in the padding is not looked at.
        joined["pixel_values"][0, :, sizes[0][0] :] = 7.0
        same = model.model.get_image_features(**joined, return_dict=True).pooler_output[0]
    assert [len(entry) for entry in tokens] == [(height // side) * (width // side) for height, width in sizes]
    assert torch.equal(same, tokens[0])


@NAMES
def test_rows_end_with_a_break_and_the_last_with_the_end(name: str, pictures: list[Any]) -> None:
    _, processor = tiny(name)
    inputs = prompt_inputs(processor, "Which?", pictures[:2])
    side = processor.patch_size * processor.spatial_merge_size
    expected = "<s>[INST]"
    for height, width in inputs["image_sizes"].tolist():
        rows = ["[IMG]" * (width // side)] * (height // side)
        expected += "[IMG_BREAK]".join(rows) + "[IMG_END]"
    assert processor.tokenizer.decode(inputs["input_ids"][0]) == expected + "Which?[/INST]"


def test_llavas_class_is_told_by_its_tower() -> None:
    assert family_of(tiny("pixtral")[0]).name == "Pixtral"
    assert family_of(tiny("llava")[0]).name == "LLaVA-1.5"
    assert {family_of(tiny(name)[0].config).model_types for name in ("pixtral", "llava")} == {("llava",)}
