from __future__ import annotations

from typing import Any

import pytest

from mllm_align.data.errors import DataError
from mllm_align.data.ocr.words import read_words


def test_pixels_shares_and_corners_are_one() -> None:
    shares = [{"text": " To  tal ", "box": [0.1, 0.2, 0.3, 0.25]}]
    pixels = [{"text": "To tal", "box": [20, 80, 60, 100]}]
    corners = [{"text": "To tal", "box": [[20, 82], [60, 80], [59, 100], [21, 99]]}]
    (word,) = read_words(shares, None, "page")
    assert word.text == "To tal"
    for given in (pixels, corners):
        (other,) = read_words(given, (200, 400), "page")
        assert other.text == word.text
        assert other.box == pytest.approx(word.box)


def test_nothing_to_see_is_left_out_and_edges_are_cut() -> None:
    given = [
        {"text": "  ", "box": [0, 0, 10, 10]},
        {"text": "line", "box": [5, 5, 5, 20]},
        {"text": "edge", "box": [-1, 0, 101, 20], "confidence": 3},
    ]
    assert read_words(given, (100, 50), "page") == [("edge", (0.0, 0.0, 1.0, 0.4))]
    assert read_words([], None, "page") == []


@pytest.mark.parametrize(
    ("given", "size", "message"),
    [
        ("text", None, "page: must be a list of words with text and box, got str"),
        ([{"text": "a"}], None, "page, word 0: must be a mapping with text and box, got {'text': 'a'}"),
        ([{"text": 3, "box": [0, 0, 1, 1]}], None, "page, word 0: must be a mapping with text and box"),
        ([{"text": "a", "box": [0, 0, 1]}], None, "page, word 0: box must be four numbers"),
        (
            [{"text": "a", "box": [0, 0, 1, "x"]}],
            None,
            "box must be four numbers (left, top, right, bottom) or corners",
        ),
        ([{"text": "a", "box": [0, 0, 1, float("nan")]}], None, "box must be four numbers"),
        ([{"text": "a", "box": [10, 10, 5, 20]}], (99, 99), "ends before it begins; sides are left, top, right and"),
        ([{"text": "a", "box": [10, 10, 50, 20]}], None, "boxes are in pixels (up to 50), of a page of unknown size"),
        (
            [{"text": "a", "box": [10, 10, 50, 20]}],
            (40, 40),
            "lies beyond the page of 40 x 40; are boxes and size of one",
        ),
    ],
)
def test_what_is_refused(given: Any, size: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        read_words(given, size, "page")
    assert message in str(error.value)
