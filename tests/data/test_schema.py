"""Rows of every accepted shape, and one clear error for each shape that is not."""

from __future__ import annotations

from typing import Any

import pytest

from mllm_align.data.schema import DataError, parse_row

TEXT = [{"type": "text", "text": "What?"}]
IMAGE = {"type": "image"}
ROW: dict[str, Any] = {"image": "a.png", "prompt": "What?", "chosen": "A cat.", "rejected": "A dog."}


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def assistant(content: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": content}]


def test_plain_row() -> None:
    row = parse_row({**ROW, "id": 7, "contrast_image": "b.png", "extra": 3})
    assert row.images == ("a.png",)
    assert row.contrast_images == ("b.png",)
    assert row.messages == ({"role": "user", "content": [IMAGE, *TEXT]},)
    assert row.responses == {"chosen": "A cat.", "rejected": "A dog."}
    assert (row.id, row.source) == ("7", "default")


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": user("What?")},
        {"prompt": user("<image>\nWhat?")},
        {"prompt": user([IMAGE, *TEXT])},
        {"prompt": user([{"type": "image", "text": None}, {"type": "text", "text": "What?", "image": None}])},
        {"image": None, "images": ["a.png"]},
        {"image": None, "prompt": user([{"type": "image", "image": "a.png"}, *TEXT])},
        {"chosen": assistant("A cat."), "rejected": assistant([{"type": "text", "text": "A dog."}])},
        {
            "prompt": None,
            "chosen": user("What?") + assistant("A cat."),
            "rejected": user("What?") + assistant("A dog."),
        },
    ],
)
def test_shapes_that_mean_the_same(changes: dict[str, Any]) -> None:
    plain, other = parse_row(ROW), parse_row({**ROW, **changes})
    assert (other.images, other.messages, other.responses) == (plain.images, plain.messages, plain.responses)


def test_prompt_completion_and_language_modelling_rows() -> None:
    wanted = {"chosen": "A cat."}
    assert parse_row({"prompt": user("What?"), "completion": assistant("A cat.")}).responses == wanted
    row = parse_row({"messages": [*user("Hi"), *assistant("Hello."), *user("What?"), *assistant("A cat.")]})
    assert row.responses == wanted
    assert [message["role"] for message in row.messages] == ["user", "assistant", "user"]


def test_text_only_rows_and_system_prompts() -> None:
    row = parse_row({"images": [], "prompt": "What?", "chosen": "A cat.", "system": "Be brief."})
    assert row.images == ()
    assert row.messages[0] == {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert row.messages[1]["content"] == TEXT


def test_images_in_several_turns_stay_where_they_are_written() -> None:
    prompt = [*user("<image>Who?"), *assistant("Kane."), *user("And\n<image>\nhere?")]
    row = parse_row({"images": ["1", "2"], "prompt": prompt, "chosen": "Gretzka."})
    assert row.messages[0]["content"] == [IMAGE, {"type": "text", "text": "Who?"}]
    assert row.messages[2]["content"] == [
        {"type": "text", "text": "And"},
        IMAGE,
        {"type": "text", "text": "here?"},
    ]


def test_all_images_go_to_the_first_user_turn_where_nothing_says_where() -> None:
    prompt = [*user("First?"), *assistant("Yes."), *user("Second?")]
    row = parse_row({"images": ["1", "2"], "prompt": prompt, "chosen": "No."})
    assert row.messages[0]["content"] == [IMAGE, IMAGE, {"type": "text", "text": "First?"}]
    assert row.messages[2]["content"] == [{"type": "text", "text": "Second?"}]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"images": ["1", "2"], "contrast_image": ["3", "4"]}, ("3", "4")),
        ({"images": ["1", "2"], "contrast_image": "3", "contrast_index": 1}, ("1", "3")),
        ({"images": ["1", "2"], "contrast_image": "3", "contrast_index": 0}, ("3", "2")),
        ({"images": ["1"], "contrast_image": "3", "contrast_index": 0}, ("3",)),
        ({"images": ["1"], "contrast_image": ["3"]}, ("3",)),
        ({"images": ["1"]}, None),
    ],
)
def test_contrast_images(changes: dict[str, Any], wanted: tuple[str, ...] | None) -> None:
    row = parse_row({"prompt": "What?", "chosen": "A cat.", **changes})
    assert row.contrast_images == wanted
    assert row.images_of("contrast_image") == wanted
    assert row.images_of("image") == tuple(changes["images"])
    assert row.images_of(None) == ()


def test_other_image_columns_are_no_views() -> None:
    with pytest.raises(DataError, match="'image', 'contrast_image' or None"):
        parse_row(ROW).images_of("retrieved_image")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": None, "question": "What?"}, r"row 3: no column 'prompt'.*is it 'question'\?.*columns="),
        ({"prompt": None, "promt": "What?"}, "is it 'promt'"),
        ({"prompt": 4}, "'prompt' must be text or a list of messages, got 4"),
        ({"prompt": "  ", "image": None}, "'prompt' is empty"),
        ({"prompt": ["What?"]}, "a message needs 'role' and 'content'"),
        ({"prompt": [{"role": "human", "content": "What?"}]}, "unknown role 'human'"),
        ({"prompt": user("What?") + assistant("No.")}, "must end with a user turn"),
        ({"prompt": user({"text": "What?"})}, "content must be text or parts"),
        ({"prompt": user([{"type": "image_url", "image_url": "x"}])}, "a content part is"),
        ({"prompt": user([{"type": "video"}, *TEXT])}, "video is out of scope"),
        ({"video": "a.mp4"}, "video is out of scope"),
        ({"videos": ["a.mp4"]}, "video is out of scope"),
        ({"prompt": user([*TEXT])}, r"0 image placeholder\(s\) in 'prompt' for 1 image"),
        ({"prompt": user([IMAGE, IMAGE, *TEXT])}, r"2 image placeholder\(s\).*for 1 image"),
        ({"prompt": "<image> and <image>?"}, r"2 image placeholder\(s\).*for 1 image"),
        ({"prompt": "<image>What?", "image": None}, r"1 image placeholder\(s\).*for 0 image"),
        ({"prompt": user([IMAGE, {"type": "text", "text": "an <image>?"}])}, "count as a further image"),
        ({"prompt": user([{"type": "image", "image": "x"}, *TEXT])}, "images both inside 'prompt' and in a column"),
        ({"images": ["b.png"]}, "both 'image' and 'images'"),
        ({"image": ["a.png"]}, "several images go to 'images'"),
        ({"image": None, "images": "a.png"}, "'images' must be a list, got str"),
        ({"image": None, "images": ["a.png", None]}, "an entry of column 'images' is None"),
        ({"chosen": ""}, "'chosen' is empty"),
        ({"rejected": assistant(" \n")}, "'rejected' is empty"),
        ({"chosen": 1.5}, "'chosen' must be text or one assistant message, got float"),
        ({"chosen": user("A cat.")}, "must be an assistant turn, it is 'user'"),
        ({"chosen": assistant("A") + assistant("B")}, "got 2 messages; earlier turns belong to 'prompt'"),
        ({"chosen": assistant([IMAGE])}, "responses are text"),
        ({"system": 3}, "'system' must be text"),
        ({"system": "A", "prompt": [{"role": "system", "content": "B"}, *user("What?")]}, "both in column 'system'"),
        ({"source": 3}, "'source' must be a name"),
        ({"image": None, "contrast_image": "b.png"}, "no column 'image', which 'contrast_image' would replace"),
        ({"contrast_image": ["b.png", "c.png"]}, "lists 2 images for 1"),
        ({"contrast_image": ["b.png"], "contrast_index": 0}, "'contrast_index' says nothing"),
        ({"contrast_image": "b.png", "contrast_index": 1}, r"contrast_index 1 with 1 image"),
        ({"contrast_image": "b.png", "contrast_index": -1}, r"contrast_index -1 with 1 image"),
        ({"contrast_image": "b.png", "contrast_index": "0"}, "'contrast_index' must be an integer, got str"),
        ({"contrast_image": "b.png", "contrast_index": True}, "'contrast_index' must be an integer, got bool"),
        (
            {"image": None, "images": ["1", "2"], "contrast_image": "b.png"},
            r"does not say which of them it replaces; add 'contrast_index' \(0 to 1\)",
        ),
        (
            {"prompt": None, "chosen": user("A?") + assistant("1"), "rejected": user("B?") + assistant("2")},
            "differ before their last turn",
        ),
    ],
)
def test_bad_rows(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        parse_row({**ROW, **changes}, 3)
    assert str(error.value).startswith("row 3: ")


def test_errors_name_the_row_by_what_it_has() -> None:
    bad = {**ROW, "chosen": ""}
    with pytest.raises(DataError, match=r"^row 3 \(id 'x'\): "):
        parse_row({**bad, "id": "x"}, 3)
    with pytest.raises(DataError, match=r"^row with id 'x': "):
        parse_row({**bad, "id": "x"})
    with pytest.raises(DataError, match=r"^row with prompt 'What\?': "):
        parse_row(bad)
    with pytest.raises(DataError, match="a row must be a mapping"):
        parse_row(["not", "a", "row"])  # type: ignore[arg-type]
