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
