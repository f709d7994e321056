"""Rows that hold their pictures themselves: a block of them is in memory, not all."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.mine.test_realign import goes_on
from data.mine.test_realign import make as realign
from data.mine.test_rejecting import COLOURS, seen
from data.mine.test_rejecting import make as reject

ROWS, BLOCK = 60, 4  # rows; of a block, in both


class Held(bytes):
    """Bytes that count how many of them there are."""

    now = most = 0

    def __new__(cls, data: bytes) -> Held:
        Held.now += 1
        Held.most = max(Held.most, Held.now)
        return super().__new__(cls, data)

    def __del__(self) -> None:
        Held.now -= 1


class Stored:
    """Rows that are read when they are asked for, as those of a Parquet file."""

    def __init__(self) -> None:
        self.pictures = []
        for colour in COLOURS:
            sink = io.BytesIO()
            Image.new("RGB", (8, 8), colour).save(sink, "PNG")
            self.pictures.append(sink.getvalue())

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, number: int) -> dict[str, Any]:
        if number >= ROWS:
            raise IndexError(number)
        picture = {"bytes": Held(self.pictures[number % 5]), "path": None}
        chosen = f"It is {COLOURS[number % 5]} over here."
        return {"id": str(number), "image": picture, "prompt": "Which colour?", "chosen": chosen}


@pytest.mark.parametrize(("make", "rule"), [(reject, lambda ask: f"It is {seen(ask)} or brown."), (realign, goes_on)])
def test_pictures_are_let_go_behind_every_block(make: Callable[..., Any], rule: Any, tmp_path: Path) -> None:
    Held.now = Held.most = 0
    report, _ = make(Stored(), tmp_path / "out.jsonl", rule)
    assert report["kept"] > 0.8 * ROWS
    assert 0 < Held.most <= 3 * BLOCK
    assert Held.now == 0
    assert len(list((tmp_path / "out_images").iterdir())) == len(COLOURS)
