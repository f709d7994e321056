"""Rows that ask which picture shows an object: one alone does, and neither place nor name tells."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from mllm_align.data.references import declare_references, reordered
from mllm_align.data.schema import parse_row
from mllm_align.data.world import Scene, reference_rows, render, scenes
from mllm_align.data.world.language import caption
from mllm_align.data.world.references import ASKS
from mllm_align.models import load_processor

Row = dict[str, Any]


def named_scenes(row: Row, known: dict[bytes, Scene]) -> dict[str, Scene]:
    """The scene behind each name of a declared row."""
    parsed = parse_row(row)
    images = iter(parsed.images)
    found, name = {}, ""
    for part in parsed.messages[0]["content"]:
        if part["type"] == "text":
            name = part["text"].strip().removesuffix(" is")
        else:
            found[name] = known[next(images).tobytes()]
    return found


@pytest.mark.parametrize("num_images", [2, 3])
def test_the_answer_is_the_picture_that_shows_it(num_images: int) -> None:
    known = {render(scene).tobytes(): scene for scene in scenes("train", 200 * num_images, 0, "balanced")}
    rows = reference_rows(150, num_images=num_images)
    places: Counter[tuple[str, int]] = Counter()
    for row in rows:
        shown = named_scenes(row, known)
        assert len(shown) == num_images
        question = row["prompt"][0]["content"][-1]["text"].strip()
        size, colour, shape = re.fullmatch(r"In which picture is the (\w+) (\w+) (\w+)\?", question).groups()  # type: ignore[union-attr]
        fitting = [
            name
            for name, scene in shown.items()
            if (item := scene.find(shape)) is not None and (item.colour, item.size) == (colour, size)
        ]
        assert fitting == [row["chosen"]]
        # The shape alone would not do.
        assert sum(scene.find(shape) is not None for scene in shown.values()) > 1
        places[row["chosen"], list(shown).index(row["chosen"])] += 1
    names = Counter({name: 0 for name, _ in places})
    for (name, _), count in places.items():
        names[name] += count
    assert set(names.values()) == {150 // num_images}
    assert len(places) == num_images**2
    assert min(places.values()) > 150 / num_images**2 * 0.6


def test_rows_are_right_in_every_order() -> None:
    rows = reference_rows(20, declared=False)
    known = {render(scene).tobytes(): scene for scene in scenes("train", 60, 0, "balanced")}
    assert [declare_references(row)["prompt"] for row in rows] == [row["prompt"] for row in reference_rows(20)]
    for row in rows:
        turned = declare_references(reordered(row, (1, 0)))
        assert turned["chosen"] == row["chosen"]
        before, after = named_scenes(declare_references(row), known), named_scenes(turned, known)
        assert before == after
        assert list(before) == list(after)[::-1]


def test_rows_are_deterministic_and_of_scenes_that_none_shares() -> None:
    rows, again, other = reference_rows(40), reference_rows(40), reference_rows(40, seed=1)
    pixels = [image.tobytes() for row in rows for image in row["images"]]
    assert len(set(pixels)) == 80
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in again]
    assert [row["prompt"] for row in rows] != [row["prompt"] for row in other]
    tested = {image.tobytes() for row in reference_rows(40, split="test_in_distribution") for image in row["images"]}
    assert not tested & set(pixels)
    with pytest.raises(ValueError, match="num_images must lie between 2 and 8, not 1"):
        reference_rows(1, num_images=1)


def test_the_base_model_knows_every_word() -> None:
    tokenizer = load_processor("demo-base").tokenizer
    rows = reference_rows(60, num_images=4, asks=ASKS)
    texts = [part.get("text", "") for row in rows for part in row["prompt"][0]["content"]]
    ids = tokenizer([*texts, *(row["chosen"] for row in rows)], add_special_tokens=False)["input_ids"]
    assert not any(tokenizer.unk_token_id in each for each in ids)


def test_what_else_is_asked_is_true_of_the_picture_that_is_meant() -> None:
    known = {render(scene).tobytes(): scene for scene in scenes("train", 800, 0, "balanced")}
    asks = ("describe", "whether", "which")
    rows = reference_rows(180, asks=asks)
    answers: Counter[tuple[str, str]] = Counter()
    for number, row in enumerate(rows):
        shown = named_scenes(row, known)
        question = row["prompt"][0]["content"][-1]["text"].strip()
        if asks[number % 3] == "describe":
            (name,) = re.fullmatch(r"Describe (picture \w+)\.", question).groups()  # type: ignore[union-attr]
            assert row["chosen"] == caption(shown[name])
            assert [row["rejected"]] == [caption(scene) for other, scene in shown.items() if other != name]
        elif asks[number % 3] == "whether":
            found = re.fullmatch(r"Is there a (\w+) (\w+) (\w+) in (picture \w+)\?", question)
            size, colour, shape, name = found.groups()  # type: ignore[union-attr]
            own = {name for name, scene in shown.items() if shows(scene, size, colour, shape)}
            assert len(own) == 1  # so the answer is in the names alone
            assert row["chosen"] == ("yes" if own == {name} else "no")
            answers[name, row["chosen"]] += 1
            assert {row["chosen"], row["rejected"]} == {"yes", "no"}
        else:
            assert question.startswith("In which picture is the ")
            assert {row["chosen"], row["rejected"]} == set(shown)
    assert set(answers.values()) == {15}
    assert [row["prompt"] for row in reference_rows(30)] == [
        row["prompt"] for row in reference_rows(30, asks=["which"])
    ]
    for wrong in ((), "which", ["which", "whose"]):
        with pytest.raises(ValueError, match="asks must be a list of any of which, where, whether, look, describe"):
            reference_rows(1, asks=wrong)


@pytest.mark.parametrize("num_images", [2, 3])
def test_a_look_is_answered_by_the_name_alone(num_images: int) -> None:
    known = {render(scene).tobytes(): scene for scene in scenes("train", 400 * num_images, 0, "balanced")}
    rows = reference_rows(120, num_images=num_images, asks=["look"])
    asked: Counter[str] = Counter()
    for row in rows:
        shown = named_scenes(row, known)
        question = row["prompt"][0]["content"][-1]["text"].strip()
        what, shape, name = re.fullmatch(r"What (\w+) is the (\w+) in (picture \w+)\?", question).groups()  # type: ignore[union-attr]
        looks = {name: getattr(item, what) for name, scene in shown.items() if (item := scene.find(shape)) is not None}
        assert looks.pop(name) == row["chosen"] != row["rejected"]
        assert row["rejected"] in looks.values()
        asked[what] += 1
    assert min(asked["colour"], asked["size"]) > 0


@pytest.mark.parametrize("num_images", [2, 3])
def test_where_asks_for_a_shape_that_one_picture_alone_shows(num_images: int) -> None:
    known = {render(scene).tobytes(): scene for scene in scenes("train", 400 * num_images, 0, "balanced")}
    rows = reference_rows(120, num_images=num_images, asks=["where"])
    for row in rows:
        shown = named_scenes(row, known)
        question = row["prompt"][0]["content"][-1]["text"].strip()
        (shape,) = re.fullmatch(r"In which picture is the (\w+)\?", question).groups()  # type: ignore[union-attr]
        assert [name for name, scene in shown.items() if scene.find(shape)] == [row["chosen"]]
        assert row["rejected"] in set(shown) - {row["chosen"]}
    assert set(Counter(row["chosen"] for row in rows).values()) == {120 // num_images}


def shows(scene: Scene, size: str, colour: str, shape: str) -> bool:
    item = scene.find(shape)
    return item is not None and (item.size, item.colour) == (size, colour)
