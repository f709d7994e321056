"""Columns that a contrast may be of, and those that it may not."""

from __future__ import annotations

from typing import Any

import pytest

from mllm_align.objectives.columns import check_sides, image_columns


def test_one_column_or_several() -> None:
    assert image_columns("Mine", "image") == ("image",)
    assert image_columns("Mine", ["contrast_image", "image"]) == ("contrast_image", "image")


@pytest.mark.parametrize("columns", [(), "chosen", ("image", "photo")])
def test_other_columns_are_refused(columns: Any) -> None:
    with pytest.raises(ValueError, match="Mine: columns must be among image, contrast_image, got"):
        image_columns("Mine", columns)


def test_sides_are_an_image_and_a_response() -> None:
    check_sides("Mine", "contrast_image", "rejected")
    with pytest.raises(ValueError, match="Mine: image must be 'image' or 'contrast_image', got 'chosen'"):
        check_sides("Mine", "chosen", "chosen")
    with pytest.raises(ValueError, match="Mine: text must be 'chosen' or 'rejected', got 'image'"):
        check_sides("Mine", "image", "image")
