"""Rows whose prompts name their objects: text, order, what stays of the row."""

from __future__ import annotations

from typing import Any

import pytest

from mllm_align.contract import Needs, View
from mllm_align.data.encode import RowEncoder
from mllm_align.data.errors import DataError
from mllm_align.data.object_prompts import with_object_tokens
from mllm_align.data.schema import parse_row
from tiny import tiny

ROW: dict[str, Any] = {
    "id": "7",
    "images": ["a.jpg", "b.jpg"],
    "system": "Be brief.",
    "prompt": "Which is it?",
    "chosen": "2",
    "objects": [
        {"box": [0.5, 0, 1, 1], "image": 1, "text": "a cup", "object_id": "x"},
        {"box": [0, 0, 0.25, 1], "image": 0},
        {"box": [0, 0, 0.5, 0.1], "image": 1},
    ],
}


def test_objects_are_listed_picture_by_picture() -> None:
    row = parse_row(with_object_tokens(ROW))
    assert [message["role"] for message in row.messages] == ["system", "user"]
    assert row.messages[1]["content"] == [
        {"type": "image"},
        {"type": "image"},
        {
            "type": "text",
            "text": "Picture 1 shows [0, 0, 250, 1000] <object>.\n"
            "Picture 2 shows [500, 0, 1000, 1000] <object>, [0, 0, 500, 100] <object>.\n",
        },
        {"type": "text", "text": "Which is it?"},
    ]
    assert [each.image for each in row.objects["image"]] == [0, 1, 1]
    assert [each.object_id for each in row.objects["image"]] == ["", "x", ""]
    assert (row.id, row.images, row.responses) == ("7", ("a.jpg", "b.jpg"), {"chosen": "2"})


def test_the_row_that_was_given_stays() -> None:
    before = {**ROW, "objects": [dict(each) for each in ROW["objects"]]}
    with_object_tokens(ROW)
    assert before == ROW


def test_placeholders_of_images_in_the_text_are_behind_no_object() -> None:
    row = parse_row(with_object_tokens({**ROW, "prompt": "Left: <image> right: <image> Same?"}))
    kinds = [part["type"] for part in row.messages[1]["content"]]
    assert kinds == ["text", "image", "text", "image", "text", "text"]
    assert row.messages[1]["content"][4]["text"].startswith("Picture 1 shows")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objects": []}, "it has no objects to name"),
        ({"prompt": "Is it <object>?"}, "its prompt has <object> already"),
    ],
)
def test_what_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_object_tokens({**ROW, **change}, 3)


def test_a_prompt_whose_objects_would_be_read_as_words_is_not_trained_on(pictures: list[Any]) -> None:
    encoder = RowEncoder(tiny("llava")[1], lambda source: Needs(views=(View("image", "chosen"),)))
    raw = {**ROW, "images": pictures[:2]}
    with pytest.raises(DataError, match=r"'7'.*its prompt has <object>, which stands for the vector of an object"):
        list(encoder.encode(parse_row(with_object_tokens(raw)), lambda *_: ("key", "<image>")))
    said = {**raw, "prompt": "What does the tag <object> of HTML do?", "objects": None}
    (view,) = encoder.encode(parse_row(said), lambda *_: ("key", "<image>"))
    assert "<object>" in view.prefix
