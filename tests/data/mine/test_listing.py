"""What counts as a folder of images, and what tells one listing from another."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mllm_align.data.mine.listing import is_image_folder, list_images
from runs import picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.PNG", "a é.png", ".hidden.png", "below/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(len(name)).save(tmp_path / name)
    return tmp_path


def test_a_folder_is_listed_by_name_hidden_files_left_out(folder: Path) -> None:
    listing = list_images(folder)
    assert list(listing.ids) == ["a é.png", "b.PNG", "below/c.png"]
    assert listing.image(0) == str(folder / "a é.png")
    assert listing.ignored == 0


def test_images_alone_are_a_folder_of_images(folder: Path) -> None:
    assert is_image_folder(folder)
    assert not is_image_folder(folder / "nowhere")
    (folder / "metadata.jsonl").write_text("{}")
    assert not is_image_folder(folder)
    assert not is_image_folder("world:pairs")


class Lazy(Sequence[dict[str, Any]]):
    """Rows that are made when asked for, and counted while anybody holds one."""

    held = most = 0

    def __len__(self) -> int:
        return 100

    def __getitem__(self, number: Any) -> Any:
        if number >= len(self):
            raise IndexError(number)
        row = Held(id=number, image={"bytes": b"x", "path": None})
        Lazy.held += 1
        Lazy.most = max(Lazy.most, Lazy.held)
        weakref.finalize(row, Lazy.let_go)
        return row

    @classmethod
    def let_go(cls) -> None:
        cls.held -= 1


class Held(dict[str, Any]):
    pass


def test_rows_are_not_kept() -> None:
    assert len(list_images(Lazy())) == 100
    assert Lazy.most <= 2


def test_the_digest_is_of_names_rows_and_groups() -> None:
    rows = [{"id": 1, "image": "a.png", "g": "x"}, {"id": 2, "image": "a.png", "g": "y"}]
    listing = list_images(rows, group="g")
    assert (list(listing.same_as), listing.repeated_ids) == ([0, 0], [])
    others = [list_images(rows), list_images(rows[:1], group="g"), list_images(rows[::-1], group="g")]
    others.append(list_images([rows[0], {**rows[1], "image": "b.png"}], group="g"))
    assert len({listing.digest, *(other.digest for other in others)}) == 5
    again = [{"id": 1, "image": "a.png"}, {"id": 1, "image": "b.png"}, {"id": 1, "image": "a.png"}]
    assert list_images(again).repeated_ids == ["1"]
    unnamed = [{"image": "a.png"}, {"image": "b.png"}]
    assert list_images(unnamed).repeated_ids == []
    held = [{"id": 1, "image": {"bytes": b"x"}}, {"id": 1, "image": {"bytes": b"x"}}]
    assert (list(list_images(held).same_as), list_images(held).repeated_ids) == ([0, 1], ["1"])
    shared = [{"id": 1, "image": "a.png"}, {"id": 1, "image": "a.png"}]
    assert list_images(shared).repeated_ids == []


def test_what_a_job_keeps_below_is_not_of_the_folder(folder: Path) -> None:
    before = list_images(folder).digest
    kept = folder / "vectors"
    kept.mkdir()
    for name in ("job.json", "block-000000.parquet", "index.faiss"):
        (kept / name).write_text("{}")
    assert is_image_folder(folder)
    assert (list_images(folder).digest, list_images(folder).ignored) == (before, 0)
    picture(5).save(kept / "own.png")
    (kept / "block-000000.parquet").unlink()
    assert "vectors/own.png" in list_images(folder).ids
