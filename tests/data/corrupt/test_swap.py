"""Another row's image, whatever the draw, and never one that equals the row's own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mllm_align.data.corrupt import Swap, corrupted
from mllm_align.data.errors import DataError
from runs import picture


def row(**changes: Any) -> dict[str, Any]:
    return {"prompt": "What is it?", "chosen": "red", **changes}


def picked(rows: list[dict[str, Any]], own: Any, seed: int, place: int = 0) -> Any:
    return Swap().pick(own, rows, place, np.random.default_rng(seed), "row 0")


def test_every_other_image_comes_up_and_the_own_one_never(tmp_path: Path) -> None:
    paths = [tmp_path / f"bild_ü_{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    rows = [row(image=str(path)) for path in (*paths, paths[0], paths[0])]
    found = Counter(picked(rows, paths[0], seed) for seed in range(200))
    assert set(found) == {str(path) for path in paths[1:]}


def test_equal_is_what_has_equal_content() -> None:
    rows = [row(image=picture(0)), row(image=picture(0)), row(image=picture(1))]
    for seed in range(20):
        assert picked(rows, picture(0), seed) is rows[2]["image"]


def test_of_several_images_each_may_be_taken() -> None:
    rows = [row(image=picture(0)), row(images=[picture(0), picture(1), picture(2)])]
    found = {picked(rows, picture(0), seed).tobytes() for seed in range(30)}
    assert found == {picture(1).tobytes(), picture(2).tobytes()}


def test_a_row_of_several_images_gets_none_of_its_own() -> None:
    rows = [row(image=picture(0)), row(images=[picture(0), picture(1), picture(2)]), row(image=picture(3))]
    found = {picked(rows, picture(0), seed, place=1).tobytes() for seed in range(30)}
    assert found == {picture(3).tobytes()}
    made = corrupted(rows, "swap")
    shown = {image.tobytes() for epoch in range(20) for image in made[1, epoch]["contrast_image"]}
    assert shown == {picture(0).tobytes(), picture(3).tobytes()}


def test_every_draw_starts_anywhere() -> None:
    rows = [row(image=picture(number)) for number in range(5)]
    found = Counter(picked(rows, picture(0), seed).tobytes() for seed in range(300))
    assert len(found) == 4
    assert min(found.values()) > 30


def test_nothing_to_swap_for() -> None:
    for rows in (
        [row(image=picture(0)), row(image=picture(0)), row()],
        [row(images=[picture(0), picture(1)])],
    ):
        with pytest.raises(
            DataError, match="row 0: no other row shows another image, so there is none to swap it for"
        ):
            picked(rows, picture(0), 0)


def test_a_row_that_cannot_be_read_is_named() -> None:
    rows = [row(image=picture(0)), row(id="seven", image="gone.png")]
    with pytest.raises(DataError, match=r"row 1 \(id 'seven'\), whose image stands in for that of row 0: there is no"):
        picked(rows, picture(0), 0)
