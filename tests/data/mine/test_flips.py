"""Left and right exchanged where they are sides, and left alone where they may be something else."""

from __future__ import annotations

import pytest

from candidates import candidate, of_categories
from mllm_align.data.mine.flips import (
    ASYMMETRIC_PROMPT,
    NO_SIDE,
    OTHER_CATEGORY,
    SYMMETRIC_PICTURE,
    UNCLEAR_SIDE,
    exchange_sides,
    flips_in_proportion,
    flips_of,
    names_sides_evenly,
)
from mllm_align.data.mine.selection import by_category


@pytest.mark.parametrize(
    ("text", "exchanged"),
    [
        ("left", "right"),
        ("Right.", "Left."),
        ("LEFT", "RIGHT"),
        ("The cup is on the left.", "The cup is on the right."),
        ("The cup is to the left of the plate.", "The cup is to the right of the plate."),
        ("a red circle on the left and a star on the right", "a red circle on the right and a star on the left"),
        ("The man left of the woman waves.", "The man right of the woman waves."),
        ("It is in the top left corner.", "It is in the top right corner."),
        ("A dog at the far right is facing left.", "A dog at the far left is facing right."),
        ("The leftmost cup is full.", "The rightmost cup is full."),
        ("He raises his right hand.", "He raises his left hand."),
        ("The right-hand side is dark.", "The left-hand side is dark."),
        ("To its left, a cat sleeps.", "To its right, a cat sleeps."),
        ("On the Left side", "On the Right side"),
    ],
)
def test_sides_are_exchanged_and_back(text: str, exchanged: str) -> None:
    assert exchange_sides(text) == exchanged
    assert exchange_sides(exchanged) == text


@pytest.mark.parametrize(
    "text",
    [
        "A cup on a table.",
        "He left the room.",
        "He left of his own accord.",
        "What is left of the cake is small.",
        "She is right.",
        "All right.",
        "You are right about the cup on the left.",
        "It is the right person.",
        "They are on the right track.",
        "The train left at noon.",
        "The food left over is cold.",
        "It is right behind the door.",
        "Turn it right side up.",
        "A bright copyright sign.",
    ],
)
def test_what_may_be_something_else_stays(text: str) -> None:
    assert exchange_sides(text) is None


@pytest.mark.parametrize(
    ("prompt", "even"),
    [
        ("Where is the cup?", True),
        ("Is it on the left or on the right?", True),
        ("What is on the left?", False),
        ("Left, right, left?", False),
    ],
)
def test_a_prompt_that_names_one_side_asks_for_something_else(prompt: str, even: bool) -> None:
    assert names_sides_evenly(prompt) is even


def test_flips_show_the_mirror_image_and_say_how_they_were_made() -> None:
    items = [
        candidate(0, chosen="It is on the left.", category="side"),
        candidate(1),
        candidate(2, chosen="He left the room."),
        candidate(3, chosen="It is on the right.", turns=(("user", "Is it on the right?"),)),
        candidate(4, chosen="It is on the left.", images=("same", "x"), mirror="same"),
    ]
    flips, impossible = flips_of(items)
    assert impossible == dict.fromkeys((NO_SIDE, UNCLEAR_SIDE, ASYMMETRIC_PROMPT, SYMMETRIC_PICTURE), 1)
    (flip,) = flips
    assert flip.id == "row-0/flip"
    assert flip.images == ("image 0", "mirror 0")
    assert (flip.chosen, flip.rejected) == ("It is on the left.", "It is on the right.")
    assert (flip.made_by, flip.texts_by) == ("flip", "left and right exchanged")
    assert flip.similarity_visual is flip.similarity_semantic is None
    assert flips_of(items, ["colour"]) == ([], {OTHER_CATEGORY: len(items)})
    assert flips_of(items, ["side"])[0] == flips


def test_flips_take_the_share_that_their_category_had() -> None:
    kept = of_categories(colour=30, count=10)
    flips = [candidate(100 + number, category="side") for number in range(50)]
    found = flips_in_proportion(flips, kept, {"colour": 100, "count": 60, "side": 40})
    assert by_category(found) == {"side": 10}  # 40 of 200 in the input, 10 of 50 now
    some = [*kept, *(candidate(200 + number, category="side") for number in range(4))]
    assert by_category(flips_in_proportion(flips, some, {"colour": 100, "count": 60, "side": 40})) == {"side": 6}


def test_with_nothing_else_there_is_no_proportion() -> None:
    flips = of_categories(side=5)
    assert flips_in_proportion(flips, [], {"side": 9}) == flips
    assert flips_in_proportion([], of_categories(colour=3), {"colour": 3}) == []


def test_a_flip_looks_as_its_picture_does() -> None:
    pair = candidate(0, chosen="It is on the left.", rejected="It is on the right.", looks=(b"own", b"contrast"))
    assert [flip.looks for flip in flips_of([pair])[0]] == [(b"own",)]
