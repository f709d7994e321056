"""Larger pixels for further encoders: they show what the model's own views show, of every family that has views."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mllm_align.data.pixels import ImageEncoder
from mllm_align.families import family_of
from mllm_align.families.base import EXTRA_PIXELS
from mllm_align.vision.own_pixels import render, unwrap_processor, wrap_processor
from tiny import tiny

VIEWS = ("llava", "llava_next", "llava_onevision", "internvl", "idefics3", "smolvlm", "paligemma", "gemma3")
SIDE = 112


def smooth(width: int, height: int, shift: int = 0) -> Image.Image:
    """Slow waves, so that other filters and sizes give nearly the same."""
    down, across = np.mgrid[0:height, 0:width]
    planes = [
        127 + 90 * np.sin(across / width * 5 + shift),
        127 + 90 * np.cos(down / height * 4 + shift),
        127 + 90 * np.sin((across / width + down / height) * 3),
    ]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def shown_views(processor: Any, pixels: torch.Tensor) -> torch.Tensor:
    """(views, 3, h, w) in 0..1 of the tower's pixels."""
    own = processor.image_processor
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (own.image_mean, own.image_std))
    return (pixels.flatten(0, -4) if pixels.dim() > 4 else pixels) * std + mean


def difference(processor: Any, encoded: Any) -> float:
    """Mean difference of own views and the tower's, these in their size."""
    views = shown_views(processor, encoded.tensors["pixel_values"])
    extra = encoded.tensors[EXTRA_PIXELS].float() / 255
    assert len(extra) == len(views)
    smaller = torch.nn.functional.interpolate(extra, views.shape[-2:], mode="bicubic", antialias=True)
    return float((smaller - views).abs().mean())


def wrapped(name: str) -> tuple[Any, Any, ImageEncoder]:
    model, processor = tiny(name)
    family = family_of(model)
    wrap_processor(processor, family, model.config, SIDE)
    return family, processor, ImageEncoder(processor, (*family.image_keys, EXTRA_PIXELS))


@pytest.mark.parametrize("size", [(150, 70), (60, 130), (90, 90)])
@pytest.mark.parametrize("name", VIEWS)
def test_every_view_shows_what_the_towers_does(name: str, size: tuple[int, int]) -> None:
    _, processor, encode = wrapped(name)
    encoded = encode(smooth(*size))
    assert encoded.tensors[EXTRA_PIXELS].dtype == torch.uint8
    assert encoded.tensors[EXTRA_PIXELS].shape[1:] == (3, SIDE, SIDE)
    assert difference(processor, encoded) < 0.02


@pytest.mark.parametrize("name", VIEWS)
def test_a_square_lands_in_the_same_cell(name: str) -> None:
    _, processor, encode = wrapped(name)
    image = Image.new("RGB", (140, 84), "black")
    image.paste("white", (100, 12, 124, 36))
    encoded = encode(image)
    views = shown_views(processor, encoded.tensors["pixel_values"]).mean(1)
    extra = encoded.tensors[EXTRA_PIXELS].float().mean(1) / 255
    brightest = [torch.nn.functional.adaptive_avg_pool2d(each[:, None], 4).flatten(1) for each in (views, extra)]
    assert (brightest[0] - brightest[1]).abs().max() < 0.1
    assert brightest[1].max() > 0.3


@pytest.mark.parametrize("name", VIEWS)
def test_prompts_of_several_images_have_the_views_of_each(name: str) -> None:
    family, processor, encode = wrapped(name)
    images = [smooth(150, 70), smooth(60, 130, 1), smooth(80, 80, 2)]
    token = processor.image_token
    out = processor(
        text=[f"{token}{token} two", f"{token} one"],
        images=[images[:2], images[2:]],
        padding=True,
        return_tensors="pt",
    )
    alone = [encode(image, several=number < 2).tensors[EXTRA_PIXELS] for number, image in enumerate(images)]
    if "batch_num_images" in family.image_keys:
        assert [len(each) for each in alone[:2]] == [1, 1]
    assert torch.equal(out[EXTRA_PIXELS], torch.cat(alone))


def test_padding_has_the_processors_colour() -> None:
    model, processor = tiny("llava_next")
    family = family_of(model)
    wrap_processor(processor, family, model.config, SIDE)
    encoded = ImageEncoder(processor, (*family.image_keys, EXTRA_PIXELS))(Image.new("RGB", (160, 60), "white"))
    views = shown_views(processor, encoded.tensors["pixel_values"])
    extra = encoded.tensors[EXTRA_PIXELS].float() / 255
    assert (views[1:].amin(dim=(1, 2, 3)) < 1e-5).all()  # above and below
    assert (extra.mean(dim=(1, 2, 3)) - views.mean(dim=(1, 2, 3))).abs().max() < 0.02


def test_part_of_an_image_beyond_its_edges() -> None:
    image = Image.new("RGB", (40, 20), "white")
    found = render(image, (-0.5, 0.0, 0.5, 1.0), 20, (10, 20, 30))
    assert found[:, 10, 2].tolist() == [10, 20, 30]
    assert found[:, 10, 18].tolist() == [255, 255, 255]
    inside = render(smooth(60, 60), (0.25, 0.5, 0.75, 1.0), 30, (0, 0, 0))
    assert torch.equal(inside, torch.from_numpy(np.array(smooth(60, 60)))[30:60, 15:45].permute(2, 0, 1))


def test_what_is_saved_is_the_stock_processor(tmp_path: Path) -> None:
    _, stock = tiny("llava")
    _, processor, encode = wrapped("llava")
    plain = ImageEncoder(stock, ("pixel_values",))
    stock.save_pretrained(tmp_path / "stock")
    processor.save_pretrained(tmp_path / "wrapped")
    files = sorted(path.name for path in (tmp_path / "stock").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "wrapped").iterdir())
    for name in files:
        assert (tmp_path / "stock" / name).read_bytes() == (tmp_path / "wrapped" / name).read_bytes(), name
    assert encode.fingerprint != plain.fingerprint
    other = copy.deepcopy(processor)
    other.own = other.own._replace(side=56)
    assert ImageEncoder(other, encode.image_keys).fingerprint != encode.fingerprint
    image = smooth(80, 60)
    again = pickle.loads(pickle.dumps(processor))
    for made in (again, copy.deepcopy(processor)):
        out = made(text=["<image>"], images=[image], return_tensors="pt")
        assert torch.equal(out[EXTRA_PIXELS], encode(image).tensors[EXTRA_PIXELS])
    unwrap_processor(processor)
    assert type(processor) is type(stock)
    assert EXTRA_PIXELS not in processor(text=["<image>"], images=[image], return_tensors="pt")
    with pytest.raises(ValueError, match="already"):
        wrap_processor(again, again.own.family, again.own.config, 56)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "pixtral", "mistral3"])
def test_images_of_their_own_resolution_are_refused(name: str) -> None:
    model, processor = tiny(name)
    with pytest.raises(ValueError, match="at the resolution it has"):
        wrap_processor(processor, family_of(model), model.config, SIDE)
