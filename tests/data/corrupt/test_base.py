"""Options are numbers that make sense, or the error names option, range and value."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mllm_align.data.corrupt.base import number, span, whole


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.1, True, "0.5", None, [0.5]])
def test_no_number_between_0_and_1(value: Any) -> None:
    with pytest.raises(ValueError, match=r"share must be a number of at least 0 and at most 1, not "):
        number("share", value, 0, 1)


def test_numbers() -> None:
    assert number("share", 1, 0, 1) == 1.0
    assert isinstance(number("share", 1, 0, 1), float)
    with pytest.raises(ValueError, match="radius must be a number above 0, not 0"):
        number("radius", 0, 0, above=True)
    assert whole("step", 3, 0, 3) == 3
    for value in (4, -1, 2.0, True):
        with pytest.raises(ValueError, match="step must be a whole number of at least 0 and at most 3"):
            whole("step", value, 0, 3)


def test_spans() -> None:
    assert span("scale", [0, 1], 0) == (0.0, 1.0)
    for value, message in (
        ([0.2, 0.1], "begin with its lower end"),
        (0.1, "two numbers"),
        ([0.1], "two numbers"),
        ("ab", "two numbers"),
        ([0.1, "x"], "a number"),
        ([-1, 0], "a number of at least 0"),
    ):
        with pytest.raises(ValueError, match=f"scale must be.*{message}|scale must {message}"):
            span("scale", value, 0)
