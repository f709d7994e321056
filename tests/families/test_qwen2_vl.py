"""Qwen-VL: positions in three rows, tokens in raster order."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from batches import image_tensors, prompt_inputs
from mllm_align.families import family_of
from tiny import tiny


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_positions_by_hand(name: str, pictures: list[Any]) -> None:
    model, processor = tiny(name)
    inputs = prompt_inputs(processor, "Which?", pictures[:2])
    images = [image_tensors(model, processor, picture) for picture in pictures[:2]]
    ids = inputs["input_ids"][0]
    grids = [[int(side) // 2 for side in image["image_grid_thw"][0, 1:]] for image in images]
    expected: list[list[int]] = []
    start, place = 0, 0
    while place < len(ids):
        if ids[place] != model.config.image_token_id:
            expected.append([start] * 3)
            start, place = start + 1, place + 1
            continue
        height, width = grids.pop(0)
        expected += [[start, start + y, start + x] for y in range(height) for x in range(width)]
        start, place = start + max(height, width), place + height * width
    positions = family_of(model).prefix_positions(
        model, ids, images, {"mm_token_type_ids": inputs["mm_token_type_ids"][0]}
    )
    assert positions.T.tolist() == expected


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_without_an_image_all_rows_count_tokens(name: str) -> None:
    model, _ = tiny(name)
    positions = family_of(model).prefix_positions(model, torch.arange(5), [], {})
    assert positions.tolist() == [[0, 1, 2, 3, 4]] * 3
