"""Bounds on the number of pixels, on the real Qwen2-VL image processor."""

from __future__ import annotations

import pytest
from PIL import Image

from chat import make_processor
from mllm_align.data.pixels import ImageEncoder, pixel_options
from tiny import tiny

KEYS = ("pixel_values", "image_grid_thw")
PATCH = 14


@pytest.fixture(scope="module")
def qwen() -> object:
    return tiny("qwen2_vl")[1]


@pytest.mark.parametrize(
    ("low", "high"), [(None, None), (None, 28 * 28 * 4), (28 * 28 * 6, None), (28 * 28 * 20, 28 * 28 * 40)]
)
def test_images_keep_within_the_bounds(qwen, low: int | None, high: int | None) -> None:
    encoder = ImageEncoder(qwen, KEYS, low, high)
    default = dict(qwen.image_processor.size)
    for size in ((400, 300), (40, 30), (300, 100)):
        image = encoder(Image.new("RGB", size))
        grid = image.tensors["image_grid_thw"]
        assert grid.shape == (1, 3)
        pixels = int(grid.prod()) * PATCH * PATCH
        assert (low or default["shortest_edge"]) <= pixels <= (high or default["longest_edge"])
        assert image.expansion == qwen.image_token * (int(grid.prod()) // 4)
        assert image.tensors["pixel_values"].shape[0] == int(grid.prod())
        assert image.size == size
    assert dict(qwen.image_processor.size) == default


def test_bounds_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"min_pixels and max_pixels: CLIPImageProcessorPil has no such option.*28"):
        pixel_options(make_processor(), 100, 200)
    with pytest.raises(ValueError, match="min_pixels 200 is larger than max_pixels 100"):
        pixel_options(tiny("qwen2_vl")[1], 200, 100)
    with pytest.raises(
        ValueError, match=r"min_pixels 20000 is larger than max_pixels 12544 .*own of Qwen2VLImageProcessorPil"
    ):
        pixel_options(tiny("qwen2_vl")[1], 20000, None)
    assert pixel_options(make_processor(), None, None) == {}


def test_one_of_several_images_is_processed_as_in_its_prompt() -> None:
    keys = ("pixel_values", "image_sizes", "batch_num_images")
    _, processor = tiny("llava_onevision")
    encoder = ImageEncoder(processor, keys)
    images = [Image.effect_noise(size, 50).convert("RGB") for size in ((90, 50), (40, 100), (64, 64))]
    text = processor.image_token
    whole = processor(text=[text * 3], images=[images], return_tensors="pt", return_text_replacement_offsets=True)
    for number, image in enumerate(images):
        found = encoder(image, several=True)
        for key in ("pixel_values", "image_sizes"):
            assert found.tensors[key].equal(whole[key][number : number + 1])
        assert found.expansion == whole["text_replacement_offsets"][0][number]["replacement"] == text * 17
        alone = encoder(image)
        assert alone.tensors["pixel_values"].shape[1] > found.tensors["pixel_values"].shape[1] == 1
        assert (int(alone.tensors["batch_num_images"]), int(found.tensors["batch_num_images"])) == (1, 2)
    assert encoder.variant("a", True) != encoder.variant("a", False) == "a"
    other = ImageEncoder(tiny("llava_next")[1], keys[:2])
    assert other.variant("a", True) == "a"
    assert other(images[0], several=True).tensors["pixel_values"].equal(other(images[0]).tensors["pixel_values"])
