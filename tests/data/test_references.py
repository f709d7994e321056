"""Images with names: what a prompt says then, in which order ever they come, and names that cannot be told apart."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import datasets
import pytest

from mllm_align.contract import Needs, View
from mllm_align.data.collator import AlignCollator
from mllm_align.data.errors import DataError
from mllm_align.data.references import declare_references, interleaves, reordered, with_references
from mllm_align.data.schema import parse_row
from mllm_align.families import family_of
from runs import picture
from tiny import tiny

Row = dict[str, Any]


def shown(row: Row) -> str:
    """The prompt with the images themselves where they stand."""
    parsed = parse_row(row)
    images = iter(parsed.images)
    parts = [part for message in parsed.messages for part in message["content"]]
    return "".join(f"<{next(images)}>" if part["type"] == "image" else part["text"] for part in parts)


def row_of(**changes: Any) -> Row:
    return {
        "id": "x",
        "images": ["m.png", "p.png", "s.png"],
        "image_names": ["the map", "the photo", "the sketch"],
        "prompt": "Is [[the photo]] taken on [[the map]]?",
        "chosen": "Yes, [[The Photo]] is.",
        "rejected": "No, but [[ the sketch ]] is.",
    } | changes


def test_each_image_is_introduced_by_its_name() -> None:
    declared = declare_references(row_of())
    assert shown(declared) == (
        "the map is <m.png>\nthe photo is <p.png>\nthe sketch is <s.png>\nIs the photo taken on the map?"
    )
    assert declared["chosen"] == "Yes, the photo is."
    assert declared["rejected"] == "No, but the sketch is."
    assert "image_names" not in declared
    assert declared["id"] == "x"


def test_names_by_default_and_by_argument() -> None:
    row = {"images": ["a", "b"], "prompt": "Is [[image 1]] newer than image 0?", "chosen": "yes"}
    assert shown(declare_references(row)) == "image 0 is <a>\nimage 1 is <b>\nIs image 1 newer than image 0?"
    named = declare_references({**row, "prompt": "Is [[new]] newer?"}, ["old", "new"])
    assert shown(named) == "old is <a>\nnew is <b>\nIs new newer?"
    single = declare_references({"image": "a", "prompt": "What is [[image 0]]?"})
    assert shown(single) == "image 0 is <a>\nWhat is image 0?"


def test_images_that_stand_in_the_text_stay_there() -> None:
    row = {"images": ["a", "b"], "prompt": "Look at\n<image>\nand at <image>. Is [[image 0]] larger?"}
    assert shown(declare_references(row)) == ("Look at\nimage 0 is <a>\nand at \nimage 1 is <b>\n. Is image 0 larger?")
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is [[image 0]]?"}]},
        {"role": "assistant", "content": "[[image 0]] is a dog."},
        {"role": "user", "content": [{"type": "text", "text": "And this?"}, {"type": "image"}]},
    ]
    declared = declare_references({"images": ["a", "b"], "prompt": turns, "chosen": "[[image 1]] is a cat."})
    assert [message["role"] for message in declared["prompt"]] == ["user", "assistant", "user"]
    assert shown(declared) == ("image 0 is <a>\nWhat is image 0?image 0 is a dog.And this?\nimage 1 is <b>")
    assert declared["chosen"] == "image 1 is a cat."


def test_names_travel_with_images_and_answers_stay() -> None:
    """In every order each image has its own name beside it, and question and answers are the same."""
    for order in permutations(range(3)):
        moved = declare_references(reordered(row_of(), order))
        lines = shown(moved).split("\n")
        assert sorted(lines[:3]) == ["the map is <m.png>", "the photo is <p.png>", "the sketch is <s.png>"]
        assert lines[:3] == [sorted(lines[:3])[place] for place in order]
        assert lines[3] == "Is the photo taken on the map?"
        assert moved["chosen"] == "Yes, the photo is."
    default = {"images": ["a", "b"], "prompt": "Is [[image 0]] larger?", "chosen": "yes"}
    assert shown(declare_references(reordered(default, (1, 0)))) == (
        "image 1 is <b>\nimage 0 is <a>\nIs image 0 larger?"
    )


def test_what_belongs_to_an_image_travels_too() -> None:
    box = [0.1, 0.1, 0.5, 0.5]
    row = row_of(
        contrast_image=["cm", "cp", "cs"],
        objects=[{"box": box, "image": 2, "text": "a line"}, {"box": box, "text": "a road"}],
    )
    moved = reordered(row, (2, 0, 1))
    assert moved["contrast_image"] == ["cs", "cm", "cp"]
    parsed, before = parse_row(declare_references(moved)), parse_row(declare_references(row))

    def on(each: Any) -> dict[str, str]:
        return {found.text: each.images[found.image] for found in each.objects["image"]}

    assert on(parsed) == on(before) == {"a line": "s.png", "a road": "m.png"}
    single = reordered(row_of(contrast_image="cp", contrast_index=1), (2, 1, 0))
    assert parse_row(declare_references(single)).contrast_images == ("s.png", "cp", "m.png")
    assert parse_row(
        declare_references(reordered(row_of(contrast_image="cm", contrast_index=0), (2, 1, 0)))
    ).images_of("contrast_image") == ("s.png", "p.png", "cm")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prompt": "Is [[the phot]] old?"},
            "column 'prompt': no image is called 'the phot'; there are 'the map', 'the p",
        ),
        ({"chosen": "[[a cat]]"}, "column 'chosen': no image is called 'a cat'"),
        ({"prompt": "[[photo]]?"}, "no image is called 'photo'; .*did you mean 'the photo'"),
        ({"prompt": "[[the]]?"}, "the reference 'the' may be any of 'the map', 'the photo', 'the sketch': name one"),
        ({"prompt": "[[]]?"}, "no image is called ''"),
        ({"image_names": ["the map", "The Map", "b"]}, "'the map' and 'The Map' cannot be told apart"),
        ({"image_names": ["map", "old map", "b"]}, "'map' and 'old map' cannot be told apart"),
        ({"image_names": ["old map", "map", "b"]}, "'old map' and 'map' cannot be told apart"),
        ({"image_names": ["a", "b"]}, r"2 name\(s\) for 3 image\(s\); 'image_names' needs one for each"),
        ({"image_names": ["a", " ", "c"]}, "name 1 must be text without brackets or outer spaces, got ' '"),
        ({"image_names": ["a", "b]", "c"]}, "name 1 must be text without brackets"),
        ({"image_names": ["a", 2, "c"]}, "name 1 must be text"),
        ({"images": []}, "no image that could be named; fill 'images'"),
        ({"prompt": None}, "column 'prompt' must be text or a list of messages"),
        ({"prompt": "<image> and <image>?"}, "2 image placeholder"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image", "path": "a.png"}]}]},
            "images inside 'prompt': give them as 'images'",
        ),
    ],
)
def test_references_that_are_wrong(changes: Row, message: str) -> None:
    with pytest.raises(DataError, match=f"row with id 'x'.*{message}"):
        declare_references(row_of(**changes))


def test_a_numbered_image_that_is_not_there_is_found_without_brackets() -> None:
    row = {"images": ["a", "b"], "prompt": "Is Image 2 larger than image 1?"}
    with pytest.raises(DataError, match="no image is called 'Image 2'; there are 'image 0', 'image 1'"):
        declare_references(row)
    # Of a number beyond it only the whole is a mention, and other words are none.
    assert "image 1" in shown(declare_references({**row, "prompt": "Is image 1 an image of 12 dogs, or images 3?"}))
    with pytest.raises(DataError, match="no image is called 'image 10'"):
        declare_references({**row, "prompt": "Is image 10 larger?"})


@pytest.mark.parametrize(
    ("changes", "order", "message"),
    [
        ({}, (0, 1), r"the order \[0, 1\] does not name each of 3 images once"),
        ({}, (0, 1, 1), "does not name each"),
        ({"prompt": "<image><image><image> What?"}, (0, 1, 2), "reorder a row before it is declared"),
    ],
)
def test_orders_that_are_none(changes: Row, order: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        reordered(row_of(**changes), order)
    with pytest.raises(DataError, match="reorder a row before it is declared"):
        reordered(declare_references(row_of()), (2, 1, 0))


def test_whole_datasets() -> None:
    rows = [row_of(id=str(n)) for n in range(3)]
    listed = with_references(rows)
    assert listed == [declare_references(row) for row in rows]
    table = datasets.Dataset.from_list(rows)
    for found in (with_references(table), with_references(table.to_iterable_dataset())):
        assert [shown(row) for row in found] == [shown(row) for row in listed]
        assert [row["chosen"] for row in found] == [row["chosen"] for row in listed]
        assert all("image_names" not in row for row in found)


@pytest.mark.parametrize(("family", "kept"), [("qwen2_5_vl", True), ("idefics3", True), ("llava", False)])
def test_templates_that_leave_images_in_their_places(family: str, kept: bool) -> None:
    _, processor = tiny(family)
    assert interleaves(processor) is kept


def test_the_model_reads_a_name_and_then_its_image() -> None:
    """Names and runs of image tokens in what the collator gives, in both orders."""
    model, processor = tiny("qwen2_5_vl")
    kind = family_of(model)
    needs = Needs(views=(View("image", "chosen"),))
    collate = AlignCollator(processor, lambda _: needs, kind.image_keys, kind.token_keys)
    row = {
        "images": [picture(0), picture(1)],
        "prompt": "Which?",
        "chosen": "[[image 1]]",
        "image_names": ["image 0", "image 1"],
    }
    token = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    for order in ((0, 1), (1, 0)):
        batch = collate([declare_references(reordered(row, order))])["batch"]
        ids = batch.prefixes[0].input_ids.tolist()
        said = processor.tokenizer.decode(
            [each for place, each in enumerate(ids) if each != token or ids[place - 1] != token]
        )
        places = [said.index(f"image {number} is ") for number in order]
        marks = [place for place, _ in enumerate(said) if said.startswith("<|image_pad|>", place)]
        assert len(marks) == 2
        assert places[0] < marks[0] < places[1] < marks[1]
        assert said.index("Which?") > marks[1]
        keys = [batch.image_ids[place] for place in batch.prefixes[0].images]
        alone = [collate([{"image": picture(n), "prompt": "?", "chosen": "!"}])["batch"].image_ids[0] for n in order]
        assert keys == alone
