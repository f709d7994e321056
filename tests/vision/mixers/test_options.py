"""Checks of mixers' options: what passes comes back as it was, anything else is named."""

from __future__ import annotations

from typing import Any

import pytest

from mllm_align.vision.mixers.options import one_of, per_encoder, switch, whole


def test_what_is_right_comes_back() -> None:
    assert whole("depth", 3) == 3
    assert whole("depth", 0, least=0) == 0
    assert one_of("norm", "layer", ("none", "layer")) == "layer"
    assert switch("learned", False) is False


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "3", None])
def test_what_is_no_whole_number_is_named(value: object) -> None:
    with pytest.raises(ValueError, match=f"depth must be a whole number of 1 or more, not {value!r}"):
        whole("depth", value)


@pytest.mark.parametrize("value", ["Layer", 1, None, ["layer"]])
def test_what_is_none_of_the_words_is_named(value: Any) -> None:
    with pytest.raises(ValueError, match="norm must be one of none, layer, not"):
        one_of("norm", value, ("none", "layer"))


@pytest.mark.parametrize("value", [0, 1, "true", None])
def test_what_is_no_switch_is_named(value: object) -> None:
    with pytest.raises(ValueError, match=f"learned must be true or false, not {value!r}"):
        switch("learned", value)


@pytest.mark.parametrize(
    ("value", "expected"), [(2, [2, 2, 2]), ("l2", ["l2"] * 3), ([1, 2, 3], [1, 2, 3]), ((1, 2, 3), [1, 2, 3])]
)
def test_one_value_holds_for_all_encoders(value: object, expected: list[object]) -> None:
    assert per_encoder("window", value, 3) == expected


def test_a_list_of_another_length_is_named() -> None:
    with pytest.raises(ValueError, match="window must be one value or a list of 3, one per further encoder; it has 2"):
        per_encoder("window", [1, 2], 3)
