"""Reading one pair, naming images, and the digest that tells one input from another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mllm_align.data.mine.pairs import image_name, input_digest, plain, read_pair
from mllm_align.data.mine.problems import EXAMPLES, Problems, RowProblem

ROW: dict[str, Any] = {"image": "a.png", "contrast_image": "b.png", "prompt": "What?", "chosen": "A", "rejected": "B"}


def test_a_plain_row() -> None:
    pair = read_pair(ROW | {"kind": "side", "score": 0.5, "boxes": [[0, 0, 1, 1]]}, 7)
    assert (pair.id, pair.source, pair.image, pair.contrast) == ("row-7", "default", "a.png", "b.png")
    assert (pair.turns, pair.chosen, pair.rejected, pair.category) == ((("user", "What?"),), "A", "B", "side")
    assert pair.extras == {"kind": "side", "score": 0.5}
    assert read_pair(ROW | {"kind": "side", "category": "one"}, 0).category == "one"
    assert read_pair(ROW | {"kind": "side", "topic": 3}, 0, "topic").category == "3"


def test_mvc_and_conversational_rows() -> None:
    listed = {**ROW, "image": None, "images": ["a.png"], "contrast_image": ["b.png"], "system": "Be brief."}
    pair = read_pair(listed, 0)
    assert (pair.image, pair.contrast) == ("a.png", "b.png")
    assert pair.turns == (("system", "Be brief."), ("user", "What?"))
    spoken = {"prompt": [{"role": "user", "content": "What <image> is it?"}]}
    assert read_pair(ROW | spoken, 0).turns == (("user", "What <image> is it?"),)


def test_problems_keep_a_few_messages_and_all_counts() -> None:
    problems = Problems()
    for number in range(EXAMPLES + 3):
        problems.add(RowProblem("missing file", f"row {number}: gone"))
    problems.add("other: once")
    assert list(problems.as_dict()) == ["missing file", "other"]
    assert problems.as_dict()["missing file"]["rows"] == EXAMPLES + 3
    assert problems.as_dict()["missing file"]["examples"] == [f"row {number}: gone" for number in range(EXAMPLES)]


@pytest.mark.parametrize(
    "change",
    [{"chosen": "C"}, {"image": "c.png"}, {"contrast_image": ["b.png"]}, {"extra": 1}, {"prompt": [{"role": "user"}]}],
)
def test_another_row_is_another_input(change: dict[str, Any]) -> None:
    assert input_digest([ROW]) == input_digest([dict(reversed(ROW.items()))]) == input_digest([ROW | {"none": None}])
    assert input_digest([ROW | change]) != input_digest([ROW])
    assert input_digest([ROW, ROW]) != input_digest([ROW])


def test_files_are_told_apart_by_their_size_and_pictures_by_their_pixels(tmp_path: Path) -> None:
    path = tmp_path / "ü.png"
    rows = [ROW | {"image": str(path)}]
    missing = input_digest(rows)
    Image.new("RGB", (4, 4)).save(path)
    there = input_digest(rows)
    assert missing != there
    path.touch()
    assert input_digest(rows) == there
    black, white = ({**ROW, "image": Image.new("RGB", (4, 4), colour)} for colour in ("black", "white"))
    assert input_digest([black]) != input_digest([white])
    assert input_digest([{**ROW, "image": {"bytes": path.read_bytes(), "path": None}}]) != there


def test_names_of_images() -> None:
    assert image_name("a.png") == image_name({"path": "a.png", "bytes": None}) == image_name(Path("x/../a.png"))
    assert image_name(b"123") == image_name({"bytes": b"123", "path": "a.png"})
    assert image_name(Image.new("RGB", (2, 2))) != image_name(Image.new("RGB", (2, 3)))


def test_plain_texts() -> None:
    assert plain(" A  Cat.\n") == plain("a cat")
    assert plain("a cat?") != plain("a cat")


def test_a_folder_that_moved_is_the_same_input_and_one_with_other_pictures_is_not(tmp_path: Path) -> None:
    def rows(folder: str) -> list[dict[str, Any]]:
        files = [str(tmp_path / folder / name) for name in ("left/a.bmp", "right/b.bmp")]
        return [
            ROW | {"image": files[0], "contrast_image": files[1]},
            ROW | {"images": files, "image": None, "contrast_image": None},
        ]

    for folder, colour in (("one", "red"), ("two", "red"), ("three", "blue")):
        for side, name in (("left", "a.bmp"), ("right", "b.bmp")):
            (tmp_path / folder / side).mkdir(parents=True)
            Image.new("RGB", (4, 4), colour).save(tmp_path / folder / side / name)
    one, two, three = (input_digest(rows(folder)) for folder in ("one", "two", "three"))
    assert one == two
    assert one != three, "files of the same names and sizes"
    exchanged = [ROW | {"image": rows("one")[0]["contrast_image"], "contrast_image": rows("one")[0]["image"]}]
    assert input_digest(exchanged) != input_digest(rows("one")[:1])
