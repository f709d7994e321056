"""Regions of image tokens: pooled as a loop over tokens would, told with what is known of each, and replayed."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mllm_align.contract import Batch, Feature, Needs, Regions, View
from mllm_align.data.collator import AlignCollator
from mllm_align.data.errors import DataError
from mllm_align.families import family_of
from mllm_align.signals import EngineOptions, Replay, measure
from mllm_align.trainers.window import zero_signals
from mllm_align.vision import RegionWeights, box_weights
from tiny import FAMILIES, tiny

REGIONS = Feature("regions", "projector", "image", pooling="regions")
NEEDS = Needs(views=(View("image", "chosen"),), features=(REGIONS,))
MASK = np.zeros((10, 20), dtype=np.float32)
MASK[2:7, 5:15] = 1


def collator_of(model: Any, processor: Any) -> AlignCollator:
    family = family_of(model)
    weights = RegionWeights(family, processor.image_processor, model.config)
    return AlignCollator(processor, lambda _: NEEDS, family.image_keys, family.token_keys, region_weights=weights)


def rows(pictures: list[Any]) -> list[dict[str, Any]]:
    text = {"prompt": "What is it?", "chosen": "A red disc."}
    first = [
        {"box": [0.3, 0.3, 0.55, 0.8], "text": "a disc", "object_id": "a", "class": "disc"},
        {"box": [0.4, 0.4, 0.4, 0.9], "text": "nothing"},
        {"mask": MASK, "object_id": "b"},
    ]
    second = [
        {"box": [0.2, 0.35, 0.6, 0.6], "image": 1, "object_id": "a"},
        {"box": [0.4, 0.2, 0.9, 0.7], "object_id": "c"},
        {"box": [1.2, 0.2, 1.4, 0.7]},
    ]
    return [
        {**text, "image": pictures[0], "objects": first},
        {**text, "image": pictures[1], "objects": []},
        {**text, "images": [pictures[2], pictures[0]], "objects": second},
    ]


def collated(model: Any, processor: Any, pictures: list[Any]) -> Batch:
    return collator_of(model, processor)(rows(pictures))["batch"]


def by_loop(family: Any, processor: Any, config: Any, tokens: Any, tensors: Any, size: Any, box: Any) -> Any:
    """The mean of the tokens by how many of 256 x 256 points of each cell lie in the box."""
    total, count = torch.zeros(tokens.shape[1], dtype=torch.float64), 0.0
    for grid in family.token_grids(tensors, size, processor.image_processor, config):
        left, top, right, bottom = grid.area
        for row in range(grid.rows):
            for column in range(grid.columns):
                x = left + (column + (np.arange(256) + 0.5) / 256) / grid.columns * (right - left)
                y = top + (row + (np.arange(256) + 0.5) / 256) / grid.rows * (bottom - top)
                share = ((box[0] < x) & (x < box[2])).mean() * ((box[1] < y) & (y < box[3])).mean()
                total += share * tokens[grid.start + row * grid.row_step + column].double()
                count += share
    return total / count


@pytest.mark.parametrize("name", FAMILIES)
def test_regions_are_means_of_tokens(name: str, pictures: list[Any]) -> None:
    model, processor = tiny(name)
    family = family_of(model)
    batch = collated(model, processor, pictures)
    told = batch.regions["image"]
    assert told.row == (0, 0, 2, 2)
    assert told.image == (0, 0, 1, 0)
    assert told.object_ids == ("a", "b", "a", "c")
    assert told.texts[0] == "a disc"
    assert told.kinds == ("disc", "", "", "")
    assert told.boxes[1] == (0.25, 0.2, 0.75, 0.7)
    assert batch.num_lost_regions == 2
    with torch.no_grad():
        signals, _ = measure(model, batch, features=NEEDS.features)
        encoded = family.encode_images(model, batch.images)
    found = signals.features["regions"]
    assert found.row.tolist() == [0, 0, 2, 2]
    assert found.values.dtype == torch.float32
    assert signals.regions["image"] == told
    assert batch.row_images is not None
    places = [batch.row_images["image"][row][image] for row, image in zip(told.row, told.image, strict=True)]
    for number, place in enumerate(places):
        size = (pictures[0] if number != 3 else pictures[2]).size
        tokens, tensors = encoded.tokens[place], batch.images[place]
        expected = by_loop(family, processor, model.config, tokens, tensors, size, told.boxes[number])
        torch.testing.assert_close(found.values[number].double(), expected, atol=0.04, rtol=0.05)
        # And to the last digit from the weights, which have tests of their own.
        grids = family.token_grids(tensors, size, processor.image_processor, model.config)
        weights = box_weights(torch.tensor([told.boxes[number]], dtype=torch.float64), grids, len(tokens))[0]
        exact = (weights.double() @ tokens.double()) / weights.double().sum()
        torch.testing.assert_close(found.values[number].double(), exact, atol=2e-5, rtol=1e-5)


def test_counting_before_measuring_and_selecting(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    batch = collated(model, processor, pictures)
    with torch.no_grad():
        signals, _ = measure(model, batch, features=NEEDS.features)
    zeros = zero_signals(batch, features=NEEDS.features, width=3)
    assert zeros.features["regions"].row.tolist() == signals.features["regions"].row.tolist()
    assert zeros.regions == signals.regions
    some = signals.select([2, 0])
    assert some.regions["image"].object_ids == ("a", "c", "a", "b")
    assert some.regions["image"].row == (0, 0, 1, 1)
    assert some.features["regions"].row.tolist() == [0, 0, 1, 1]
    values = signals.features["regions"].values
    torch.testing.assert_close(some.features["regions"].values, values[[2, 3, 0, 1]])
    assert signals.select([1]).regions["image"] == Regions()


def test_gradients_reach_the_tower_and_replayed_ones_are_the_same(pictures: list[Any]) -> None:
    model, processor = tiny("llava_next")
    batch = collated(model, processor, pictures)
    grads = []
    for replayed in (False, True):
        own = copy.deepcopy(model)
        own.requires_grad_(True)
        if replayed:
            replay = Replay(own, batch, features=NEEDS.features, options=EngineOptions(max_images_per_forward=1))
            replay.policy.features["regions"].values.square().sum().backward()
            for again in replay.passes():
                again().backward()
        else:
            signals, _ = measure(own, batch, features=NEEDS.features)
            signals.features["regions"].values.square().sum().backward()
        grads.append({name: p.grad for name, p in own.named_parameters() if p.grad is not None})
    towers = [name for name in grads[0] if ".vision_tower." in name and grads[0][name].any()]
    assert towers
    for name in towers:
        torch.testing.assert_close(grads[1][name], grads[0][name], atol=1e-5, rtol=1e-4)


def test_what_a_row_lacks_is_said(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    (row, *_) = rows(pictures)
    bare = {name: value for name, value in row.items() if name != "objects"} | {"object": []}
    collate = collator_of(model, processor)
    with pytest.raises(DataError, match=r"no column 'objects', whose regions feature .* is it 'object'\?"):
        collate([bare])
    with pytest.raises(DataError, match=r"column 'objects', object 0: box .* lies far outside"):
        collate([row | {"objects": [{"box": [10, 10, 50, 50]}]}])
    family = family_of(model)
    without = AlignCollator(processor, lambda _: NEEDS, family.image_keys, family.token_keys)
    with pytest.raises(ValueError, match="give the collator region_weights"):
        without([row])


def test_regions_of_a_contrast_image(pictures: list[Any]) -> None:
    model, processor = tiny("qwen2_5_vl")
    family = family_of(model)
    needs = Needs(features=(REGIONS, Feature("other", "projector", "contrast_image", pooling="regions")))
    weights = RegionWeights(family, processor.image_processor, model.config)
    collate = AlignCollator(processor, lambda _: needs, family.image_keys, family.token_keys, region_weights=weights)
    row = rows(pictures)[0] | {"contrast_image": Image.new("RGB", (90, 60), "red")}
    batch = collate([row | {"contrast_objects": [{"box": [0, 0, 1, 1], "object_id": "a"}]}])["batch"]
    with torch.no_grad():
        signals, _ = measure(model, batch, features=needs.features)
    assert signals.features["other"].values.shape == (1, model.config.get_text_config().hidden_size)
    assert signals.regions["contrast_image"].object_ids == ("a",)
    assert signals.regions["image"].object_ids == ("a", "b")
