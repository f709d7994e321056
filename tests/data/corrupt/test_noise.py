"""The published schedule to 1e-5, and noise of the strength that it says."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from mllm_align.data.corrupt import DiffusionNoise, GaussianNoise
from mllm_align.data.corrupt.noise import CLIP_MEAN, CLIP_STD, alpha_bars

GREY = Image.new("RGB", (200, 200), (128, 128, 128))


@pytest.mark.parametrize(
    ("step", "signal", "noise"),
    [
        (100, 0.998293, 0.058408),
        (300, 0.980984, 0.194089),
        (500, 0.863017, 0.505175),
        (700, 0.592677, 0.805440),
        (999, 0.285043, 0.958515),
    ],
)
def test_the_schedule_is_that_of_vcd(step: int, signal: float, noise: float) -> None:
    assert np.sqrt(alpha_bars()[step]) == pytest.approx(signal, abs=1e-5)
    assert np.sqrt(1 - alpha_bars()[step]) == pytest.approx(noise, abs=1e-5)


def test_what_is_left_after_half_and_all_of_the_steps() -> None:
    assert alpha_bars().shape == (1000,)
    assert alpha_bars()[500] == pytest.approx(0.744799, abs=1e-5)
    assert alpha_bars()[999] == pytest.approx(0.081249, abs=1e-5)
    assert (np.diff(alpha_bars()) < 0).all()


def moments(corruption: DiffusionNoise | GaussianNoise) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    made = np.asarray(corruption(GREY, np.random.default_rng(0))) / 255
    return made.mean(axis=(0, 1)), made.std(axis=(0, 1)), made


@pytest.mark.parametrize("step", [20, 100])
def test_noise_on_pixels_is_scaled_by_the_schedule(step: int) -> None:
    mean, std, _ = moments(DiffusionNoise(step))
    np.testing.assert_allclose(mean, np.sqrt(alpha_bars()[step]) * 128 / 255, atol=1e-3)
    np.testing.assert_allclose(std, np.sqrt(1 - alpha_bars()[step]), rtol=0.02)


def test_noise_in_clip_space_is_what_noise_on_the_normalised_image_is() -> None:
    """(x - m) / s is what VCD's formula is applied to; at step 300 next to nothing is clamped."""
    signal, noise = np.sqrt(alpha_bars()[300]), np.sqrt(1 - alpha_bars()[300])
    _, std, made = moments(DiffusionNoise(300, space="clip"))
    normalised = (made - CLIP_MEAN) / CLIP_STD
    np.testing.assert_allclose(normalised.mean(axis=(0, 1)), signal * (128 / 255 - CLIP_MEAN) / CLIP_STD, atol=3e-3)
    np.testing.assert_allclose(normalised.std(axis=(0, 1)), noise, rtol=0.02)
    assert (std < moments(DiffusionNoise(300))[1]).all()


def test_gaussian_noise_has_its_standard_deviation() -> None:
    mean, std, _ = moments(GaussianNoise(0.1))
    np.testing.assert_allclose(mean, 128 / 255, atol=2e-3)
    np.testing.assert_allclose(std, 0.1, rtol=0.02)


TOWER = CLIPImageProcessorPil(size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112})
MEAN = (123, 117, 104)  # that of CLIP, so that nothing but noise is left of it


def left(corruption: DiffusionNoise | GaussianNoise, size: tuple[int, int]) -> float:
    """Of the standard deviation that the formula says, the share that the tower is shown."""
    made = corruption(Image.new("RGB", size, MEAN), np.random.default_rng(0))
    assert made.size == size
    shown = np.asarray(TOWER(made)["pixel_values"][0])
    if isinstance(corruption, GaussianNoise):
        return float(np.mean(shown.std(axis=(1, 2)) * CLIP_STD / corruption.std))
    return float(np.mean(shown.std(axis=(1, 2))) / np.sqrt(1 - alpha_bars()[corruption.step]))


@pytest.mark.parametrize(("width", "height", "without"), [(214, 160, 0.57), (256, 342, 0.36), (167, 125, 0.73)])
def test_noise_of_the_tower_s_size_is_not_averaged_away(width: int, height: int, without: float) -> None:
    """Shorter sides of 160, 256 and 125 to 112 are 480, 768 and 375 to 336."""
    for step in (300, 500):
        assert left(DiffusionNoise(step, "clip"), (width, height)) == pytest.approx(without, abs=0.02)
        assert left(DiffusionNoise(step, "clip", 112), (width, height)) == pytest.approx(1, abs=0.03)
    assert left(GaussianNoise(0.1), (width, height)) == pytest.approx(without, abs=0.02)
    assert left(GaussianNoise(0.1, 112), (width, height)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("size", [64, 65, 10**6])
def test_noise_of_an_image_that_is_not_shrunk_is_of_single_pixels(size: int) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 80, 3), dtype=np.uint8))
    for plain, sized in ((DiffusionNoise(), DiffusionNoise(size=size)), (GaussianNoise(), GaussianNoise(size=size))):
        assert plain(image, np.random.default_rng(2)) == sized(image, np.random.default_rng(2))


def test_a_strip_has_noise_too() -> None:
    made = DiffusionNoise(size=1)(Image.new("RGB", (300, 2), MEAN), np.random.default_rng(0))
    assert np.asarray(made).std() > 30


@pytest.mark.parametrize("corruption", [GaussianNoise(5.0), DiffusionNoise(999)])
def test_noise_is_clamped_and_does_not_wrap(corruption: GaussianNoise | DiffusionNoise) -> None:
    """On white every pixel would be as likely to wrap to black; clamped, more than half stay white at the least."""
    white = Image.new("RGB", (100, 100), "white")
    made = np.asarray(GaussianNoise(0.05)(white, np.random.default_rng(0)))
    assert made.min() > 180
    strong = np.asarray(corruption(white, np.random.default_rng(0)))
    assert {0, 255} <= set(np.unique(strong))


def test_nonsense_is_refused() -> None:
    for step in (-1, 1000, 2.5, True):
        with pytest.raises(ValueError, match="step must be a whole number of at least 0 and at most 999"):
            DiffusionNoise(step)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="space must be one of pixel, clip, not 'pixels'"):
        DiffusionNoise(space="pixels")  # type: ignore[arg-type]
    for kind in (DiffusionNoise, GaussianNoise):
        for size in (0, -1, 33.6, True, "336"):
            with pytest.raises(ValueError, match="size must be a whole number of at least 1, not"):
                kind(size=size)
    for std in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="std must be a number above 0"):
            GaussianNoise(std)
