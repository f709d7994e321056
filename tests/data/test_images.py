"""Every way to give an image gives the same pixels; every broken one gives one clear error."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllm_align.data.errors import DataError
from mllm_align.data.images import image_key, load_image

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **kwargs: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **kwargs)
    return buffer.getvalue()


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(PIXELS)))
    return path


def test_all_ways_to_give_an_image(png: Path) -> None:
    data = png.read_bytes()
    lazy = Image.open(png)
    ways = [png, str(png), data, bytearray(data), {"bytes": data, "path": None}, {"bytes": None, "path": str(png)}]
    ways += [{"bytes": data, "path": "gone.png"}, Image.fromarray(PIXELS), lazy, PIXELS]
    for way in ways:
        image = load_image(way)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), PIXELS)


def test_what_is_loaded_shares_nothing_with_what_was_given() -> None:
    given = Image.fromarray(PIXELS)
    load_image(given).putpixel((0, 0), (1, 2, 3))
    assert given.getpixel((0, 0)) == tuple(PIXELS[0, 0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_on_real_pixels(data_dir: Path, orientation: int) -> None:
    upright = Image.open(data_dir / "photos" / "waterview.jpg").convert("RGB").resize((96, 64))
    # What a camera stores so that a viewer, who applies the tag, sees it upright: the inverse of each operation.
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(inverse[orientation]) if orientation in inverse else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, exif=exif)
    np.testing.assert_array_equal(np.asarray(load_image(data)), np.asarray(upright))
    np.testing.assert_array_equal(np.asarray(load_image(Image.open(io.BytesIO(data)))), np.asarray(upright))


def test_modes_become_rgb() -> None:
    grey = Image.fromarray(PIXELS[..., 0])
    np.testing.assert_array_equal(np.asarray(load_image(grey)), np.repeat(PIXELS[..., :1], 3, axis=2))
    palette = Image.fromarray(PIXELS).quantize(16)
    np.testing.assert_array_equal(np.asarray(load_image(palette)), np.asarray(palette.convert("RGB")))
    deep = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
    np.testing.assert_array_equal(np.asarray(load_image(deep))[..., 0], PIXELS[..., 0])
    with pytest.raises(DataError, match="floating-point"):
        load_image(Image.fromarray(PIXELS[..., 0].astype(np.float32)))


def test_what_is_transparent_is_white() -> None:
    image = Image.fromarray(np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)]), "RGBA")
    image.putpixel((0, 0), (10, 20, 30, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    loaded = np.asarray(load_image(encoded(image)))
    assert tuple(loaded[0, 0]) == (255, 255, 255)
    assert abs(int(loaded[0, 1, 0]) - 127) <= 1
    np.testing.assert_array_equal(loaded[1:], PIXELS[1:])


def test_a_truncated_photo_is_named(data_dir: Path, tmp_path: Path) -> None:
    data = (data_dir / "photos" / "demo_2.jpg").read_bytes()
    for share in (0.9, 0.5, 0.1):
        path = tmp_path / f"cut_{share}.jpg"
        path.write_bytes(data[: int(len(data) * share)])
        for value in (path, path.read_bytes(), {"bytes": path.read_bytes(), "path": str(path)}, Image.open(path)):
            with pytest.raises(DataError, match=r"row 3, column 'image': .*truncated.*drop the row"):
                load_image(value, "row 3, column 'image'")
        with pytest.raises(DataError, match=f"{path.name} is truncated"):
            load_image(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("/nowhere/a.png", "there is no image file /nowhere/a.png"),
        ("a/relative.png", r"relative.png below the working directory; load_rows takes image_folder"),
        ("https://example.org/a.png", "images are not fetched"),
        (b"not an image", "12 bytes is not an image that PIL can read"),
        ({"bytes": None, "path": None}, "needs 'bytes' or 'path'"),
        (np.zeros((3, 8, 8), np.uint8), r"uint8 of shape \(height, width, 3\), got uint8 of \(3, 8, 8\)"),
        (np.zeros((8, 8, 3), np.float32), "got float32"),
        (17, "int 17 is no image"),
        ([[0, 1]], "list .* is no image"),
    ],
)
def test_what_is_no_image(value: object, message: str) -> None:
    with pytest.raises(DataError, match=f"^row 3: {'.*'}{message}"):
        load_image(value, "row 3")
    if not isinstance(value, bytes):
        with pytest.raises(DataError, match=message):
            image_key(value, "row 3")


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "page.png"
    path.write_text("<html>not found</html>")
    with pytest.raises(DataError, match=r"page\.png is not an image that PIL can read"):
        load_image(path)


def test_keys_are_equal_for_equal_images_alone(png: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.png"
    other.write_bytes(encoded(Image.fromarray(255 - PIXELS)))
    assert image_key(png) == image_key(str(png)) == image_key({"bytes": None, "path": str(png)})
    assert image_key(png) != image_key(other)
    assert image_key(png.read_bytes()) == image_key({"bytes": png.read_bytes(), "path": "x"})
    assert image_key(Image.fromarray(PIXELS)) == image_key(PIXELS.copy()) == image_key(Image.open(png))
    assert image_key(PIXELS) != image_key(255 - PIXELS)
    assert image_key(np.zeros((4, 6, 3), np.uint8)) != image_key(np.zeros((6, 4, 3), np.uint8))
    before = image_key(png)
    os.utime(png, ns=(0, 0))
    touched = image_key(png)
    png.write_bytes(png.read_bytes() + b" ")
    os.utime(png, ns=(0, 0))
    assert len({before, touched, image_key(png)}) == 3


def test_keys_see_the_orientation() -> None:
    turned = Image.fromarray(PIXELS)
    turned.getexif()[0x0112] = 3
    assert image_key(turned) != image_key(Image.fromarray(PIXELS))
