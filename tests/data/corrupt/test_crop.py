"""The crop is torchvision's: area, ratio, place and fallback."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mllm_align.data.corrupt import Crop


def boxes(crop: Crop, size: tuple[int, int], count: int) -> np.ndarray:
    return np.array([crop.box(size, np.random.default_rng(seed)) for seed in range(count)])


def test_area_ratio_and_place_are_uniform() -> None:
    size = (640, 480)
    left, top, right, bottom = boxes(Crop(), size, 2000).T
    w, h = right - left, bottom - top
    share = w * h / (size[0] * size[1])
    assert share.min() > 0.0095
    assert share.max() < 0.2005
    assert share.mean() == pytest.approx((0.01 + 0.2) / 2, abs=0.004)
    assert np.quantile(share, 0.25) == pytest.approx(0.01 + 0.19 / 4, abs=0.008)
    log_ratio = np.log(w / h)
    assert np.abs(log_ratio).max() < math.log(4 / 3) + 0.05
    assert log_ratio.mean() == pytest.approx(0, abs=0.01)
    for start, room in ((left, size[0] - w), (top, size[1] - h)):
        assert (start / room).mean() == pytest.approx(0.5, abs=0.02)
        assert (start == 0).any() or start.min() < 3


@settings(max_examples=100, deadline=None)
@given(width=st.integers(1, 60), height=st.integers(1, 60), seed=st.integers(0, 2**32))
def test_the_box_is_inside(width: int, height: int, seed: int) -> None:
    for crop in (Crop(), Crop(scale=(0.9, 1)), Crop(ratio=(0.1, 0.1)), Crop(ratio=(30, 40))):
        left, top, right, bottom = crop.box((width, height), np.random.default_rng(seed))
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((1, 1), (0, 0, 1, 1)),
        # Strips, of which no draw of the whole area has an allowed ratio: the middle, 4 to 3 or 3 to 4.
        ((100, 9), (44, 0, 56, 9)),
        ((9, 100), (0, 44, 9, 56)),
        ((12, 10), (0, 0, 12, 10)),
    ],
)
def test_what_is_taken_where_no_draw_fits(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    assert Crop(ratio=(3 / 4, 4 / 3)).box(size, Never()) == box  # type: ignore[arg-type]


class Never:
    """Draws that never fit: more than the whole area."""

    def uniform(self, low: float, high: float) -> float:
        return 4.0

    def integers(self, high: int) -> int:
        raise AssertionError("a draw fitted")


def test_the_part_is_resized_to_the_whole() -> None:
    columns = np.arange(200, dtype=np.uint8)
    image = Image.fromarray(np.broadcast_to(columns[None, :, None], (100, 200, 3)).copy())
    crop, rng = Crop(), np.random.default_rng(5)
    left, _, right, _ = crop.box(image.size, np.random.default_rng(5))
    made = np.asarray(crop(image, rng))
    assert made.shape == (100, 200, 3)
    assert (made[0, 0, 0], made[0, -1, 0]) == (left, right - 1)


@pytest.mark.parametrize(
    "options",
    [
        {"scale": (0, 0.2)},
        {"scale": (0.1, 1.2)},
        {"scale": (1, 1)},
        {"ratio": (0, 1)},
        {"ratio": 1},
        {"scale": (0.2, 0.1)},
    ],
)
def test_nonsense_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Crop(**options)  # type: ignore[arg-type]


def test_lists_and_whole_numbers_make_the_same_crop() -> None:
    assert Crop(ratio=[1, 1]) == Crop(ratio=(1.0, 1.0))  # type: ignore[arg-type]
    assert repr(Crop(ratio=[1, 1])) == repr(Crop(ratio=(1.0, 1.0)))  # type: ignore[arg-type]
