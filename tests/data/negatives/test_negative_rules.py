"""Edits by rules against tables written by hand."""

from __future__ import annotations

from random import Random

import pytest

from mllm_align.data.negatives import KINDS, paraphrases, proposals
from mllm_align.data.negatives.claims import Related, Thing, claims
from mllm_align.data.negatives.known import Known
from mllm_align.data.negatives.making import RULES
from mllm_align.data.negatives.sentence import Sentence
from mllm_align.data.objects import ImageObject, read_objects


def edits(kind: str, text: str) -> set[str]:
    return {each for site in RULES[kind](Sentence(text)) for each in site}


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("size", "A SMALL dog, by a big tree.", {"A LARGE dog, by a big tree.", "A SMALL dog, by a small tree."}),
        ("size", "a woman with short hair", {"a woman with long hair"}),
        ("size", "a short man", {"a tall man"}),
        ("size", "a little bit of snow all day long", set()),
        ("state", "an old car", {"a new car"}),
        ("state", "an old man", {"a young man"}),
        ("state", "a five years old boy, a glass full of milk", set()),
        ("state", "The door is open.", {"The door is closed."}),
        ("state", "Open the door of New York.", set()),
        ("material", "a glass of wine", set()),
        ("relation", "The cup is left of the plate.", {"The cup is right of the plate."}),
        ("relation", "a cat on the left, a dog", {"a cat on the right, a dog"}),
        ("relation", "He has left the room, right now; all right", set()),
        ("relation", "the right answer is at the bottom of it", {"the right answer is at the top of it"}),
        ("relation", "A dog in front of a car", {"A dog behind a car"}),
        ("relation", "a cup on top of a book", {"a cup under a book"}),
        ("relation", "a cat on the wooden table", {"a cat under the wooden table"}),
        ("relation", "a man on the phone on a sunny day, over there", set()),
        ("relation", "a man under construction", set()),
        ("count", "3 dogs", {"2 dogs", "4 dogs", "5 dogs", "6 dogs"}),
        ("count", "Eleven cups", {"Eight cups", "Nine cups", "Ten cups", "Twelve cups"}),
        ("count", "One dog is here", {"Two dogs are here", "Three dogs are here", "Four dogs are here"}),
        ("count", "one woman and a man", {"two women and a man", "three women and a man", "four women and a man"}),
        ("count", "one of none, no one, another one, the one, two-thirds, two hundred men", set()),
        ("count", "at 10:30, 2.5 cups, two hours, 4 x 4 cars, #3 cars, two or three dogs, a 3D film", set()),
        ("count", "a two year old boy, one handed", set()),
        ("action", "a dog lying on a bed", {f"a dog {o} on a bed" for o in (
            "sitting", "standing", "walking", "running", "jumping", "flying", "swimming", "climbing")}),
        ("action", "running shoes and a man flying a kite, a boy walking his dog", set()),
        ("object", "a hot dog, a bus stop and a teddy bear", set()),
        ("object", "two circles", {f"two {s}" for s in (
            "squares", "triangles", "stars", "crosses", "rings", "diamonds", "hexagons", "moons", "hearts")}),
        ("swap", "a red cup and a blue plate", {"a blue cup and a red plate", "a red plate and a blue cup"}),
        ("swap", "a red cup and a blue cup", set()),
        ("swap", "a red and blue cup", set()),
        ("swap", "a red cup and a red cup", set()),
        ("swap", "a dog and a cat", set()),
        ("swap", "a dog next to a cat", set()),
        ("swap", "a man sitting next to a dog in a room", set()),
        ("swap", "a man and a dog in a car", {"a man and a car in a dog"}),
        ("swap", "a man riding a horse", {"a horse riding a man"}),
        ("swap", "A dog is left of a cat", {"A cat is left of a dog"}),
        ("swap", "a dog on the left and a cat on the right",
         {"a dog on the right and a cat on the left", "a cat on the left and a dog on the right"}),
        ("swap", "An apple on a red table.", {"A table on a red apple."}),
    ],
)  # fmt: skip
def test_edits_of_a_kind(kind: str, text: str, expected: set[str]) -> None:
    assert edits(kind, text) == expected


def test_colours_are_whole_words_in_the_place_of_what_they_describe() -> None:
    found = edits("colour", "A tan hat of a tank; the hundred are bored in the White House.")
    assert found == {f"{a} {c} hat of a tank; the hundred are bored in the White House." for a, c in (
        ("A", "red"), ("A", "green"), ("A", "blue"), ("A", "yellow"), ("An", "orange"), ("A", "purple"), ("A", "pink"),
        ("A", "black"), ("A", "white"), ("A", "grey"))}  # fmt: skip
    assert not any("brown" in each for each in found)  # near to tan
    assert "The cup is yellow." in edits("colour", "The cup is red.")
    assert "The RED cup" in edits("colour", "The BLUE cup")


def test_orange() -> None:
    assert not edits("colour", "An orange on a plate, oranges, and orange juice.")
    assert "an apple on a plate" in edits("object", "an orange on a plate")
    assert "a blue cat" in edits("colour", "an orange cat")
    assert "the cat is blue" in edits("colour", "the cat is orange")
    # The documented limit: what follows the fruit is taken for what it describes.
    assert "a blue salad" in edits("colour", "an orange salad")


def test_draws_depend_on_the_seed_alone() -> None:
    text = "Two small red dogs sitting on the wooden bench left of a blue cup and an open door."
    found = proposals(text, KINDS, Random(7))
    assert found == proposals(text, KINDS, Random(7)) != proposals(text, KINDS, Random(8))
    assert {each.kind for each in found} == set(KINDS)
    assert all(each.text != text for each in found)
    with pytest.raises(ValueError, match="no kind of edit 'color'; there are colour"):
        proposals(text, ["color"], Random(0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A small red circle on the left.", {Thing("circle", (("colour", "red"), ("size", "small")), None, "left")}),
        ("the big sofas are grey", {Thing("couch", (("colour", "grey"), ("size", "large")))}),
        ("two oranges", {Thing("orange", (), 2)}),
        (
            "A cup right of the blue plate",
            {Thing("cup"), Thing("plate", (("colour", "blue"),)),
             Related(Thing("plate", (("colour", "blue"),)), "left of", Thing("cup"))},
        ),
        ("Nothing of it is known.", set()),
    ],
)  # fmt: skip
def test_claims(text: str, expected: set[object]) -> None:
    assert claims(text) == expected


def objects(*entries: tuple[str, str, list[float]]) -> tuple[ImageObject, ...]:
    return read_objects([{"text": text, "class": kind, "box": box} for text, kind, box in entries], 1, "row")


LEFT, RIGHT, LOW = [0.0, 0.1, 0.3, 0.4], [0.6, 0.1, 0.9, 0.4], [0.6, 0.6, 0.9, 0.9]


@pytest.mark.parametrize(
    ("original", "negative", "verdict"),
    [
        ("a red cup", "a blue cup", "true"),  # there are both
        ("a red cup", "a green cup", "false"),
        ("a red cup", "a red plate", "unchecked"),  # plates may be there that nobody named
        ("a red cup", "a red dog", "false"),  # the class is one whose objects are all named
        ("two cups", "three cups", "false"),
        ("three cups", "two cups", "true"),
        ("a red cup left of a blue cup", "a red cup right of a blue cup", "false"),
        ("a red cup and a blue cup", "a blue cup and a red cup", "unchecked"),  # no claim is new
        ("a red cup and a blue cup", "a red cup and a red cup", "true"),  # less is said
        ("a cup on the left", "a cup on the right", "true"),
        ("a red cup on the left", "a red cup on the right", "false"),
        ("a person", "a man", "unchecked"),
        ("a small cup", "a large cup", "unchecked"),  # nobody said
        ("a man walking", "a man running", "unchecked"),
    ],
)
def test_what_objects_say(original: str, negative: str, verdict: str) -> None:
    there = objects(("red cup", "cup", LEFT), ("blue cup", "cup", RIGHT), ("", "person", LOW))
    assert Known(there, ["dog", "cup"]).verdict(negative, original) == verdict
    less = negative == "a red cup and a red cup"  # what is left out is known without objects
    assert Known([]).verdict(negative, original) == ("true" if less else "unchecked")


SHOWS, IN = "The picture shows ", "In the picture, "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog and a cat.", {"A cat and a dog.", f"{IN}a dog and a cat.", f"{SHOWS}a dog and a cat."}),
        ("a dog and a cat on a bed", {f"{IN}a dog and a cat on a bed", f"{SHOWS}a dog and a cat on a bed"}),
        (
            "A dog is on a large sofa",
            {f"{IN}a dog is on a large sofa", "A dog is on a large couch", "A dog is on a big sofa"},
        ),
        ("a cup next to a dog", {"a cup beside a dog", f"{IN}a cup next to a dog", f"{SHOWS}a cup next to a dog"}),
        ("It is there.", set()),
    ],
)
def test_paraphrases(text: str, expected: set[str]) -> None:
    assert set(paraphrases(text, Random(0), 9)) == expected
    assert len(paraphrases(text, Random(0), 1)) == min(1, len(expected))
