"""Each public format on a row as its authors publish it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mllm_align.data.errors import DataError
from mllm_align.data.schema import parse_row
from mllm_align.data.sources import FORMATS, converter

HUMAN, GPT = {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}
ANSWERS = {"question": "What?", "chosen": "A cat.", "rejected": "A dog."}
PICTURE = {"bytes": b"x", "path": "1.jpg"}
EXAMPLES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llava", {"id": "1", "image": "1.jpg", "conversations": [HUMAN, GPT]}, {"id": "1"}),
    (
        "llava",
        {
            "images": ["1.jpg"],
            "messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}],
        },
        {},
    ),
    ("llava", {"image": ["1.jpg"], "conversations": [HUMAN, GPT]}, {}),
    (
        "povid",
        {
            "id": "x",
            "image": "1.jpg",
            "conversations": [HUMAN, GPT],
            "rejected_conversations": [HUMAN, {"from": "gpt", "value": "A dog."}],
        },
        {"id": "x", "rejected": "A dog."},
    ),
    (
        "rlhf_v",
        {"ds_name": "RLHF-V", "image": PICTURE, "text": json.dumps(ANSWERS), "idx": 1},
        {"id": "RLHF-V/1", "rejected": "A dog.", "image": PICTURE},
    ),
    (
        "rlhf_v",
        {"ds_name": "RLAIF-V", "image": PICTURE, **ANSWERS, "idx": "7", "text": None},
        {"id": "RLAIF-V/7", "rejected": "A dog.", "image": PICTURE},
    ),
    (
        "mvc",
        {
            "system_prompt": "",
            "instruction_prompt": "What?",
            "chosen_images": ["1.jpg"],
            "rejected_images": ["2.jpg"],
            "chosen_response": "A cat.",
            "rejected_response": "A dog.",
        },
        {"rejected": "A dog.", "contrast": ("2.jpg",)},
    ),
    (
        "re_align",
        {
            "image": "1.jpg",
            "retrieved_image": "2.jpg",
            "chosen": [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A cat."}],
            "rejected": [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A dog."}],
        },
        {"rejected": "A dog.", "contrast": ("2.jpg",)},
    ),
]


@pytest.mark.parametrize(("name", "raw", "wanted"), EXAMPLES)
def test_public_rows_become_canonical(name: str, raw: dict[str, Any], wanted: dict[str, Any]) -> None:
    before = json.dumps(raw, default=str)
    row = parse_row(converter(name)(raw))
    assert json.dumps(raw, default=str) == before
    assert row.messages == ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},)
    assert row.images == (wanted.get("image", "1.jpg"),)
    assert row.contrast_images == wanted.get("contrast")
    assert row.responses.get("rejected") == wanted.get("rejected")
    assert row.responses["chosen"] == "A cat."
    assert row.id == wanted.get("id")


def test_every_format_has_an_example() -> None:
    # Those with objects have tests of their own.
    assert {name for name, _, _ in EXAMPLES} | {"coco", "grit", "mmvm", "ocr", "sa1b"} == set(FORMATS)


def test_system_prompts_and_several_turns() -> None:
    raw = {"conversations": [HUMAN, GPT, {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Whiskers."}]}
    row = parse_row(converter("llava")({**raw, "image": "1.jpg", "system": "Be brief."}))
    assert [message["role"] for message in row.messages] == ["system", "user", "assistant", "user"]
    assert row.responses == {"chosen": "Whiskers."}
    mvc = next(raw for name, raw, _ in EXAMPLES if name == "mvc")
    assert parse_row(converter("mvc")({**mvc, "system_prompt": "Be brief."})).messages[0]["role"] == "system"


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("llava", {"id": "9", "image": "1.jpg"}, "row '9': no 'conversations' or 'messages'; it has id, image"),
        ("llava", {"id": "9", "conversations": [HUMAN]}, "end with an answer"),
        ("llava", {"id": "9", "conversations": [{"from": "bot", "value": "x"}]}, "unknown speaker 'bot'"),
        ("povid", {"id": "9", "image": "1.jpg", "conversations": [HUMAN, GPT]}, "no 'conversations'"),
        ("rlhf_v", {"idx": 3, "image": PICTURE, "text": "{"}, "row 3: column 'text' is not JSON"),
        ("rlhf_v", {"idx": 3, "image": PICTURE, "text": "{}"}, "row 3: no 'question'"),
        ("mvc", {"chosen_images": []}, "format 'mvc' has no 'rejected_images'"),
        ("re_align", {"image": "1.jpg"}, "format 're_align' has no 'retrieved_image'"),
    ],
)
def test_rows_of_another_format(name: str, raw: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        converter(name)(raw)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("re_align", {"id": 9, "image": "1.jpg", "retrieved_image": "2.jpg", "chosen": None, "rejected": None}),
        ("llava", {"id": 9, "conversations": ["Hi", "Hello"]}),
        ("povid", {"id": 9, "image": "1.jpg", "conversations": [HUMAN, GPT], "rejected_conversations": 3}),
        ("rlhf_v", {"idx": 9, "image": PICTURE, "text": "[1]"}),
    ],
)
def test_a_row_that_holds_something_else_is_named(name: str, raw: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=f"^row 9 .*none of format '{name}'"):
        converter(name)(raw)


@pytest.mark.parametrize(("name", "raw"), [(name, raw) for name, raw, _ in EXAMPLES if name in ("mvc", "re_align")])
def test_an_id_is_kept_where_there_is_one(name: str, raw: dict[str, Any]) -> None:
    assert converter(name)({**raw, "id": "mine"})["id"] == "mine"
    assert "id" not in converter(name)(raw)
