"""Matchings: one right answer or none, numbered in an order of its own, from any rows with ids."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mllm_align.data.errors import DataError
from mllm_align.data.matching import matching_row, matching_rows
from mllm_align.data.schema import parse_row


def thing(name: str, image: int, left: float) -> dict[str, Any]:
    return {"box": [left, 0.1, left + 0.05, 0.3], "object_id": name, "image": image}


def row_of(first: str, second: str, number: int = 0) -> dict[str, Any]:
    objects = [thing(name, 0, 0.1 * place) for place, name in enumerate(first)]
    objects += [thing(name, 1, 0.03 * place) for place, name in enumerate(second)]
    return {"id": f"row {number}", "images": ["a.jpg", "b.jpg"], "objects": objects}


def read(row: dict[str, Any]) -> tuple[str, list[str], str | None]:
    """The box asked for, the boxes to choose from, and the box that is right; from the words alone."""
    text = parse_row(row).messages[0]["content"][-1]["text"]
    asked = re.search(r"in the box (\[.*?\])", text)
    options = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    assert asked is not None
    assert list(options) == [str(number) for number in range(1, len(options) + 1)]
    assert options.popitem()[1] == "none of them"
    return asked[1], list(options.values()), options.get(row["chosen"])


def written(each: dict[str, Any]) -> str:
    return str([round(1000 * side) for side in each["box"]])


def test_the_answer_is_the_thing_asked_for() -> None:
    seen = set()
    for number in range(40):
        (row,) = matching_rows([row_of("abc", "cbad", number)], share_without=0)
        asked, options, right = read(row)
        names = {written(each): each["object_id"] for each in row["objects"] if each["image"] == 1}
        asked_for = {written(each): each["object_id"] for each in row["objects"] if each["image"] == 0}[asked]
        assert sorted(options) == sorted(names)
        assert right is not None
        assert names[right] == asked_for
        seen.add((asked_for, row["chosen"]))
    # Neither what is asked for nor where its answer stands is always the same.
    assert len({name for name, _ in seen}) == 3
    assert len({place for _, place in seen}) == 4


def test_none_of_them() -> None:
    (gone,) = matching_rows([row_of("a", "bc")])
    assert read(gone)[2] is None
    assert gone["chosen"] == "3"
    rows = list(matching_rows([row_of("a", "abc", number) for number in range(200)], share_without=0.5))
    without = [row for row in rows if read(row)[2] is None]
    assert 70 < len(without) < 130
    assert all(len(read(row)[1]) == 2 for row in without)
    assert len(list(matching_rows([row_of("a", "a", number) for number in range(9)], share_without=1.0))) == 0


def test_the_same_rows_draw_the_same() -> None:
    rows = [row_of("abc", "abcd", number) for number in range(5)]
    assert list(matching_rows(rows)) == list(matching_rows(rows))
    assert list(matching_rows(rows)) != list(matching_rows(rows, seed=1))
    assert list(matching_rows(rows[2:])) == list(matching_rows(rows))[2:]


def test_rows_without_a_choice_are_left_out() -> None:
    assert list(matching_rows([row_of("", "ab"), row_of("a", ""), {"images": ["a", "b"]}])) == []


def test_at_most_25_options() -> None:
    objects = [thing("asked", 0, 0.5)] + [thing(str(n), 1, 0.03 * n) for n in range(30)]
    for answer in (7, None):
        row = matching_row("x", ["a.jpg", "b.jpg"], objects, 0, list(range(1, 31)), answer)
        _, options, right = read(row)
        assert len(options) == 25
        assert right == (None if answer is None else written(objects[answer]))


def test_candidates_that_read_alike_are_one() -> None:
    """Else two numbers would be right, or "none" where the thing is there under another id."""
    twins = row_of("a", "ab")
    twins["objects"][2]["box"] = list(twins["objects"][1]["box"])
    for number in range(20):
        (row,) = matching_rows([twins | {"id": f"row {number}"}], share_without=0)
        _, options, right = read(row)
        assert options == [right] == [written(twins["objects"][1])]
    assert list(matching_rows([twins], share_without=1.0)) == []
    (other,) = matching_rows([row_of("c", "ab") | {"id": "x"}])
    assert len(read(other)[1]) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "x", "images": ["a.jpg"], "objects": []}, "the row has 1 in 'images'"),
        (row_of("aa", "b"), "object_id 'a' is there twice on image 0"),
        (row_of("a", "b") | {"objects": [{"box": [0, 0, 1]}]}, "object 0: box must be four numbers"),
    ],
)
def test_rows_that_cannot_be_asked_about(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(matching_rows([row]))


def test_what_is_asked_for_lies_on_the_first_image() -> None:
    objects = [thing("a", 0, 0.1), thing("b", 1, 0.1)]
    with pytest.raises(DataError, match="lies on the first image"):
        matching_row("x", ["a", "b"], objects, 1, [1], None)
    with pytest.raises(DataError, match="is none of the candidates"):
        matching_row("x", ["a", "b"], objects, 0, [1], 0)
