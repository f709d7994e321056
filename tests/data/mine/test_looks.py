"""The same picture in other files is found, mirrored too; another picture is not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from mllm_align.data.mine.looks import alike, are_alike, look_of
from mllm_align.data.world import pair_rows


def photo(seed: int) -> Image.Image:
    """Smooth colours, as photographs have them."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((240, 160), Image.Resampling.BICUBIC)


def saved(image: Image.Image, quality: int) -> Image.Image:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality)
    return Image.open(sink).convert("RGB")


@pytest.mark.parametrize("seed", range(3))
def test_saved_again_resized_and_mirrored_are_alike(seed: int) -> None:
    image = photo(seed)
    for copy in (image, saved(image, 60), image.resize((120, 80)), image.resize((300, 200))):
        assert are_alike(image, copy)
        assert are_alike(ImageOps.mirror(copy), image)
    edited = image.copy()
    ImageDraw.Draw(edited).ellipse((90, 60, 110, 80), fill=(250, 0, 250))
    assert not are_alike(image, edited)
    assert not are_alike(image, ImageOps.flip(image))
    assert not are_alike(image, photo(seed + 100))


def test_a_patch_may_be_five_off_and_no_more() -> None:
    looks = [bytes([100]) * 192, bytes([105]) * 192, bytes([111]) * 192]
    assert set(alike(looks)) == {(0, 1)}
    assert set(alike(looks[::-1])) == {(1, 2)}
    one_off = bytes([100]) * 191 + bytes([106])
    assert not list(alike([looks[0], one_off]))
    assert not list(alike([]))


def test_pairs_are_those_that_a_loop_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mllm_align.data.mine.looks.AT_ONCE", 7)
    images = [image for row in pair_rows(12, 3) for image in (row["image"], row["contrast_image"])]
    images += [ImageOps.mirror(images[5]), saved(images[9], 80), Image.new("RGB", (1, 1)), Image.new("RGB", (300, 2))]
    looks = list(dict.fromkeys(map(look_of, images)))
    patches = np.stack([np.frombuffer(look, np.uint8).reshape(8, 8, 3).astype(int) for look in looks])
    wanted = {
        (one, other)
        for one in range(len(looks))
        for other in range(one + 1, len(looks))
        if min(np.abs(patches[other] - shown).max() for shown in (patches[one], patches[one][:, ::-1])) <= 5
    }
    assert set(alike(looks)) == wanted
    assert wanted
