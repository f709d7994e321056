"""LLaVA-Instruct and ShareGPT: `image` and `conversations`, or LLaMA-Factory's `images` and `messages`.

{"id": "1", "image": "1.jpg", "conversations": [{"from": "human", "value": "<image>\\nHi"}, {"from": "gpt", ...}]}

The last assistant turn becomes the response; earlier turns stay in the prompt and are not scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets

from mllm_align.data.errors import DataError, quoted

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def columns(given: Mapping[str, Any]) -> dict[str, Any]:
    """Types of the canonical columns, from those of the file."""
    text = text_of(given["conversations"] if "conversations" in given else given["messages"])
    new = {"prompt": datasets.List({"role": datasets.Value("string"), "content": text}), "chosen": text}
    image = given.get("image")
    return {**new, "images": image} if isinstance(image, datasets.List) else new


def text_of(turns: datasets.List) -> Any:
    """Type of what is said in a column of turns."""
    return turns.feature["value"] if "value" in turns.feature else turns.feature["content"]


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """A canonical row with `prompt` (messages) and `chosen`."""
    turns = read_turns(row.get("conversations") or row.get("messages"), row)
    new = {"id": row.get("id"), "prompt": turns[:-1], "chosen": turns[-1]["content"], **read_images(row)}
    if row.get("system"):
        new["system"] = row["system"]
    return {key: value for key, value in new.items() if value is not None}


def read_turns(turns: Sequence[Mapping[str, Any]] | None, row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Messages `{"role", "content"}` that end with an assistant turn."""
    if not turns:
        raise DataError(f"row {quoted(row.get('id'))}: no 'conversations' or 'messages'; it has {', '.join(row)}")
    messages = []
    for turn in turns:
        speaker = turn.get("from") or turn.get("role")
        if speaker not in ROLES:
            raise DataError(f"row {quoted(row.get('id'))}: unknown speaker {speaker!r}; known are {', '.join(ROLES)}")
        messages.append({"role": ROLES[speaker], "content": turn.get("value") or turn.get("content") or ""})
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise DataError(f"row {quoted(row.get('id'))}: a conversation must have a prompt and end with an answer")
    return messages


def read_images(row: Mapping[str, Any]) -> dict[str, Any]:
    """The image columns: a list in `image` counts as `images`."""
    given = row.get("image") if row.get("image") is not None else row.get("images")
    if given is None:
        return {}
    return {"images": given} if isinstance(given, list) else {"image": given}
