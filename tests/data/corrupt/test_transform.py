from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mllm_align.data.corrupt import Blur, Mirror, Rotate

RNG = np.random.default_rng(0)


def test_blur_spreads_a_point_by_its_radius() -> None:
    pixels = np.zeros((61, 61, 3), dtype=np.uint8)
    pixels[25:36, 25:36] = 255
    made = np.asarray(Blur(4.0)(Image.fromarray(pixels), RNG))[..., 0].astype(float)
    offsets = np.arange(61) - 30
    variance = (made.sum(axis=0) * offsets**2).sum() / made.sum()
    # Of a box of 11 pixels: (11^2 - 1) / 12; variances add.
    assert variance == pytest.approx(10 + 4.0**2, rel=0.1)


def test_angles_are_within_the_span() -> None:
    """The direction of a bright right half after it was turned: against the clock, so upwards."""
    pixels = np.zeros((101, 101, 3), dtype=np.uint8)
    y, x = np.mgrid[-50:51, -50:51]
    pixels[(x > 0) & (x**2 + y**2 < 45**2)] = 255
    image, angles = Image.fromarray(pixels), []
    for seed in range(60):
        made = np.asarray(Rotate()(image, np.random.default_rng(seed)))[..., 0]
        angles.append(np.degrees(np.arctan2(-(made * y).sum(), (made * x).sum())))
    assert min(angles) > 9
    assert max(angles) < 81
    assert np.mean(angles) == pytest.approx(45, abs=8)


def test_what_is_left_free_is_black() -> None:
    made = Rotate((45, 45))(Image.new("RGB", (50, 50), "white"), RNG)
    assert made.size == (50, 50)
    assert made.getpixel((0, 0)) == (0, 0, 0)
    assert made.getpixel((25, 25)) == (255, 255, 255)


def test_left_is_right_in_the_mirror() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Mirror()(Image.fromarray(pixels), RNG)), pixels[:, ::-1])


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="radius must be a number above 0"):
        Blur(0)
    with pytest.raises(ValueError, match="degrees must begin with its lower end"):
        Rotate((80, 10))
    for angle in (0, 360, -360):
        with pytest.raises(ValueError, match="degrees must turn the image, not"):
            Rotate((angle, angle))
    assert Rotate([0, 5]) == Rotate((0.0, 5.0))  # type: ignore[arg-type]
