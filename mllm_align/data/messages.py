"""Prompts and responses of a row: plain text, messages, TRL's content parts, and where the images go.

Where the images go, for a row with n images:

1. Content parts `{"type": "image"}` are placeholders; there must be n of them.
2. Without such parts, every literal `<image>` in the text of a user turn is one (LLaVA, ShareGPT); there must be n.
   A line break beside the literal belongs to the placeholder, because chat templates put their own.
3. With neither, all images go to the start of the first user turn, as TRL does.

A literal `<image>` beside image parts, or in a row without images, is an error: most processors would read it as one
more image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from mllm_align.data.errors import DataError, quoted

PLACEHOLDER = "<image>"
ROLES = ("system", "user", "assistant")
_LITERAL = re.compile(rf"\n?{re.escape(PLACEHOLDER)}\n?")
_IMAGE_FIELDS = ("image", "path", "url")


class Message(TypedDict):
    """One turn; `content` is text, or a list of parts."""

    role: str
    content: Any


def read_messages(prompt: Any, where: str) -> tuple[list[Message], list[Any]]:
    """The messages of a prompt, and the images that its parts carry themselves.

    Args:
        prompt: Text (one user turn), or messages that end with a user turn.
        where: How errors speak of the row.

    Raises:
        DataError: If the prompt is neither, has an unknown role, or parts of another kind than image and text.
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list | tuple) or not prompt:
        raise DataError(f"{where}: column 'prompt' must be text or a list of messages, got {quoted(prompt)}")
    embedded: list[Any] = []
    messages = [_read_message(message, "prompt", where, embedded) for message in prompt]
    if messages[-1]["role"] != "user":
        raise DataError(f"{where}: 'prompt' must end with a user turn, it ends with {messages[-1]['role']!r}")
    if not any(_text(message["content"]).strip() or _is_parts(message["content"]) for message in messages):
        raise DataError(f"{where}: column 'prompt' is empty")
    return messages, embedded


def read_response(value: Any, column: str, where: str) -> str:
    """The text of a response column.

    Raises:
        DataError: If it is empty, or neither text nor one assistant message.
    """
    if isinstance(value, str):
        text = value
    elif isinstance(value, list | tuple) and len(value) == 1:
        message = _read_message(value[0], column, where, [])
        if message["role"] != "assistant":
            raise DataError(f"{where}: column {column!r} must be an assistant turn, it is {message['role']!r}")
        if _is_parts(message["content"]) and any(part["type"] == "image" for part in message["content"]):
            raise DataError(f"{where}: column {column!r} holds an image; responses are text")
        text = _text(message["content"])
    elif isinstance(value, list | tuple):
        raise DataError(
            f"{where}: column {column!r} must be one assistant message, got {len(value)} messages; earlier turns "
            "belong to 'prompt'"
        )
    else:
        raise DataError(
            f"{where}: column {column!r} must be text or one assistant message, got {type(value).__name__}"
        )
    if not text.strip():
        raise DataError(f"{where}: column {column!r} is empty; fill it or drop the row")
    return text


def place_images(messages: Sequence[Message], num_images: int, where: str) -> list[Message]:
    """Messages with every content as parts, and one image part per image.

    Raises:
        DataError: If the placeholders are not as many as the images.
    """
    users = [message["content"] for message in messages if message["role"] == "user"]
    parts = sum(part["type"] == "image" for m in messages if _is_parts(m["content"]) for part in m["content"])
    literals = sum(_text(content).count(PLACEHOLDER) for content in users)
    if parts and literals:
        raise DataError(
            f"{where}: 'prompt' has {parts} image part(s) and the text {PLACEHOLDER!r} {literals} time(s), "
            "which would count as a further image; take it out of the text"
        )
    placeholders = parts + literals
    inserts = not placeholders and not any(map(_is_parts, users))
    if placeholders != num_images and not (inserts and num_images):
        raise DataError(
            f"{where}: {placeholders} image placeholder(s) in 'prompt' for {num_images} image(s); there must be one "
            "for each (or none at all in plain text: then images go to the start)"
        )
    placed: list[Message] = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            content = _split_literals(content) if message["role"] == "user" else [_text_part(content)]
        if inserts and num_images and message["role"] == "user":
            content, inserts = [{"type": "image"}] * num_images + content, False
        placed.append({"role": message["role"], "content": content})
    return placed


def without_images(messages: Sequence[Message]) -> list[Message]:
    """The same messages with the image parts left out."""
    return [
        {"role": message["role"], "content": [part for part in message["content"] if part["type"] != "image"]}
        for message in messages
    ]


def _read_message(message: Any, column: str, where: str, embedded: list[Any]) -> Message:
    if not isinstance(message, Mapping) or "role" not in message or message.get("content") is None:
        raise DataError(f"{where}: column {column!r}: a message needs 'role' and 'content', got {quoted(message)}")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise DataError(f"{where}: column {column!r}: unknown role {role!r}; use {', '.join(ROLES)}")
    if isinstance(content, str):
        return {"role": role, "content": content}
    if not isinstance(content, list | tuple):
        raise DataError(f"{where}: column {column!r}: content must be text or parts, got {quoted(content)}")
    return {"role": role, "content": [_read_part(part, column, where, embedded) for part in content]}


def _read_part(part: Any, column: str, where: str, embedded: list[Any]) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return _text_part(part["text"])
    if kind == "image":
        # Tables give every part the union of all keys, so absent ones are there as None.
        embedded.extend(part[field] for field in _IMAGE_FIELDS if part.get(field) is not None)
        return {"type": "image"}
    if kind == "video":
        raise DataError(f"{where}: column {column!r} has a video part: video is out of scope")
    raise DataError(
        f"{where}: column {column!r}: a content part is {{'type': 'image'}} or {{'type': 'text', 'text': ...}}, "
        f"got {quoted(part)}"
    )


def _split_literals(text: str) -> list[dict[str, str]]:
    """Text cut at its literal placeholders."""
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(_LITERAL.split(text)):
        if number:
            parts.append({"type": "image"})
        if piece:
            parts.append(_text_part(piece))
    return parts


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _is_parts(content: Any) -> bool:
    return not isinstance(content, str)
