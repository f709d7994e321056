"""Objects of a row: what is read, what is refused, and COCO's run lengths against a loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mllm_align.data.errors import DataError
from mllm_align.data.objects import read_objects, run_length_mask

WHERE = "row 3, column 'objects'"


def test_what_is_known_of_an_object() -> None:
    objects = read_objects(
        [
            {"box": [0.1, 0.2, 0.5, 1.0], "text": "a red disc", "object_id": 7, "class": "disc", "image": 1},
            {"mask": [[0, 1, 0, 0], [0, 1, 1, 0]], "text": None},
        ],
        2,
        WHERE,
    )
    first, second = objects
    assert (first.image, first.box, first.text, first.object_id) == (1, (0.1, 0.2, 0.5, 1.0), "a red disc", "7")
    assert first.kind == "disc"
    assert first.mask is None
    assert second.mask is not None
    assert second.mask.tolist() == [[0, 1, 0, 0], [0, 1, 1, 0]]
    assert second.box == (0.25, 0.0, 0.75, 1.0)
    assert (second.image, second.text, second.object_id) == (0, "", "")
    assert read_objects(None, 1, WHERE) == ()
    # Nothing is covered; whoever looks counts it.
    assert read_objects([{"box": [0.5, 0.5, 0.5, 0.9]}], 1, WHERE)[0].box[0] == 0.5
    assert read_objects([{"mask": np.zeros((2, 2))}], 1, WHERE)[0].box == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("box", "must be a list of objects, got str"),
        (["box"], "object 0: must be a mapping with a box or a mask"),
        ([{"box": [0, 0, 1, 1], "label": "x"}], "object 0: unknown key 'label'; an object has box, mask"),
        ([{"text": "x"}], "give either a box or a mask"),
        ([{"box": [0, 0, 1, 1], "mask": [[1]]}], "give either a box or a mask"),
        ([{"box": [0, 0, 1]}], "box must be four numbers"),
        ([{"box": [0, 0, 1, "1"]}], "box must be four numbers"),
        ([{"box": [0, 0, 1, float("nan")]}], "box must be four numbers"),
        (
            [{"box": [10, 20, 300, 400]}],
            "lies far outside its image; .*: divide pixels by its size",
        ),
        ([{"box": [0, 0, 1, 1], "image": 2}], r"image 2 of a row with 2 image\(s\)"),
        ([{"box": [0, 0, 1, 1], "image": True}], "image True of a row"),
        ([{"box": [0, 0, 1, 1], "text": 1.5}], "text must be text or a whole number"),
        ([{"mask": [[0, 2]]}], "mask must be an array"),
        ([{"mask": [0, 1]}], "mask must be an array"),
        ([{"mask": "x"}], "mask must be an array"),
        ([{"mask": {"size": [2, 2], "counts": [1, 2]}}], "run lengths of 3 pixels for a mask of 2 x 2"),
        ([{"mask": {"size": [2, 2], "counts": [1.0, 3]}}], "run lengths need counts"),
        ([{"mask": {"size": [2, 2], "counts": "\t"}}], "run lengths need counts"),
        ([{"mask": {"counts": [4]}}], "run lengths need size"),
    ],
)
def test_what_a_user_gets_wrong(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_objects(value, 2, WHERE)
    assert str(error.value).startswith(WHERE)


def written(mask: np.ndarray[Any, Any]) -> tuple[list[int], str]:
    """Run lengths of a mask as numbers, and in COCO's text form, written out from its description."""
    flat, runs, now = mask.T.flatten().tolist(), [0], 0
    for pixel in flat:
        if pixel != now:
            runs.append(0)
            now = pixel
        runs[-1] += 1
    text = ""
    for place, run in enumerate(runs):
        number = run - runs[place - 2] if place > 2 else run
        while True:
            digit = number % 32
            number = (number - digit) // 32
            done = (number == 0 and digit < 16) or (number == -1 and digit >= 16)
            text += chr(48 + digit + (0 if done else 32))
            if done:
                break
    return runs, text


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths(seed: int) -> None:
    generator = np.random.default_rng(seed)
    mask = (generator.random((7 + 30 * seed, 11)) < 0.3 + seed / 10).astype(int)
    mask[: 3 * seed] = 1
    runs, text = written(mask)
    size = list(mask.shape)
    np.testing.assert_array_equal(run_length_mask({"size": size, "counts": runs}, WHERE), mask)
    np.testing.assert_array_equal(run_length_mask({"size": size, "counts": text}, WHERE), mask)
    np.testing.assert_array_equal(run_length_mask({"size": size, "counts": text.encode()}, WHERE), mask)


def test_negatives_are_texts_that_are_false() -> None:
    given = {"box": [0, 0, 1, 1], "text": "a red cup", "negatives": ["a blue cup", "a red dog"]}
    (each,) = read_objects([given], 1, "row")
    assert each.negatives == ("a blue cup", "a red dog")
    for wrong, message in (
        ("a blue cup", "row, object 0: negatives must be a list of texts, got 'a blue cup'"),
        ([3], "negatives must be a list of texts"),
        ([" "], "negatives must be a list of texts"),
        (["A red cup"], "its text 'a red cup' is among its negatives; take it out"),
    ):
        with pytest.raises(DataError, match=message):
            read_objects([given | {"negatives": wrong}], 1, "row")


def test_positives_say_the_same() -> None:
    given = {"box": [0, 0, 1, 1], "text": "a red cup", "negatives": ["a blue cup"], "positives": ["a cup in red"]}
    (each,) = read_objects([given], 1, "row")
    assert each.positives == ("a cup in red",)
    for change, message in (
        ({"positives": "a cup"}, "row, object 0: positives must be a list of texts, got 'a cup'"),
        ({"positives": ["A Blue Cup"]}, "'A Blue Cup' is among its positives and its negatives"),
        ({"text": None, "negatives": None}, "positives say the same as its text, and it has none"),
    ):
        with pytest.raises(DataError, match=message):
            read_objects([given | change], 1, "row")
