"""Distinct pictures and texts of rows: told apart by what they hold, whatever the form they come in."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mllm_align.data.errors import DataError
from mllm_align.data.mine.captioned import given_pictures, given_texts, read_captions, texts_in
from runs import picture


def rows(folder: Path) -> list[dict[str, Any]]:
    """Six: a file, its copy, its bytes, another picture, none, and one that cannot be read."""
    picture(0).save(folder / "a.png")
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    other = io.BytesIO()
    picture(1).save(other, "PNG")
    images: list[Any] = [
        str(folder / "a.png"),
        [str(folder / "copy.png")],
        {"bytes": (folder / "a.png").read_bytes(), "path": None},
        {"bytes": other.getvalue(), "path": "a.png"},
        None,
        str(folder / "nowhere.png"),
    ]
    texts = ["one", ["two", "one", " "], [], "three", "four", ["five", "two"]]
    return [{"image": image, "caption": text} for image, text in zip(images, texts, strict=True)]


def test_pictures_of_equal_content_are_one(tmp_path: Path) -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(6, 2)
    found = given_pictures(rows(tmp_path), vectors, "image")
    assert found.of_row.tolist() == [0, 0, 0, 1, -1, -1]
    assert found.vectors.tolist() == vectors[[0, 3]].tolist()
    assert list(found.problems) == [4, 5]
    assert found.problems[4] == "unusable image: row 4: no image in column 'image', where one is wanted"
    assert found.problems[5] == f"unusable image: row 5: there is no image file {tmp_path / 'nowhere.png'}"
    moved = tmp_path / "moved"
    moved.mkdir()
    assert given_pictures(rows(moved), vectors, "image").keys == found.keys


def test_texts_of_unusable_rows_are_left_out_and_keep_their_place(tmp_path: Path) -> None:
    table = rows(tmp_path)
    found = read_captions(table, "caption", given_pictures(table, np.ones((6, 2), np.float32), "image"))
    assert list(found.texts) == ["one", "two", "three"]
    assert list(found.of_row) == [(0,), (1, 0), (), (2,), (), ()]
    assert list(found.spoken) == [0, 1, 0, 2, -1, -1, -1]
    assert found.problems == {2: "missing text: row 2: no text in column 'caption'"}
    vectors = np.arange(14, dtype=np.float32).reshape(7, 2)
    assert given_texts(found, vectors).tolist() == vectors[[0, 1, 3]].tolist()
    with pytest.raises(DataError, match="6 text vectors for 7 texts of 6 rows"):
        given_texts(found, vectors[1:])


def test_a_column_of_texts() -> None:
    assert texts_in("a") == ("a",)
    assert texts_in(["a", " ", "b"]) == ("a", "b")
    assert texts_in(None) == texts_in("") == texts_in([]) == ()
    assert texts_in(7) is None
    assert texts_in([{"role": "user"}]) is None
