"""What lmms-eval's tasks show and ask, as requests of our engine: images and text, in the order of the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from PIL import Image

from mllm_align.data.messages import PLACEHOLDER
from mllm_align_eval.engine import Request

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tiff", ".webp")


def of_messages(messages: Sequence[Mapping[str, Any]], choices: Sequence[str] = ()) -> Request:
    """The request of a conversation as a task's `doc_to_messages` gives it.

    Where the text itself says `<image>` once for each image, the images go there.

    Args:
        messages: Turns `{"role", "content"}`, contents a text or parts `{"type": "text", "text"}` and
            `{"type": "image", "url"}`; an image is what `mllm_align.data.images.load_image` reads.
        choices: Answers to score.

    Raises:
        ValueError: If a part is neither text nor image.
    """
    images: list[Any] = []
    turns = [{"role": turn["role"], "content": _parts(turn["content"], images)} for turn in messages]
    literals = sum(part.get("text", "").count(PLACEHOLDER) for part in _user_parts(turns))
    if images and literals == len(images):
        turns = [{**turn, "content": "".join(part.get("text", "") for part in turn["content"])} for turn in turns]
    # Conversations are rows like any other; that a prompt is one plain question is only what benchmarks of ours need.
    prompt: Any = turns
    return Request(tuple(images), prompt, tuple(choices))


def of_visuals(visuals: Any, text: str, choices: Sequence[str] = ()) -> Request:
    """The request of a question behind what a task's `doc_to_visual` gives, which is a list, or None.

    Raises:
        ValueError: If something shown is no image.
    """
    parts = [_visual_part(visual) for visual in visuals or ()]
    return of_messages([{"role": "user", "content": [*parts, {"type": "text", "text": text}]}], choices)


def _parts(content: Any, images: list[Any]) -> list[dict[str, str]]:
    """Parts with placeholders for the images, which are put into `images`."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    found = []
    for part in content:
        if part["type"] == "image":
            images.append(part["url"])
            found.append({"type": "image"})
        elif part["type"] == "text":
            found.append({"type": "text", "text": part["text"]})
        else:
            raise ValueError(f"it has a part of type {part['type']!r}: only images and text are read here")
    return found


def _user_parts(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [part for turn in turns if turn["role"] == "user" for part in turn["content"]]


def _visual_part(visual: Any) -> dict[str, Any]:
    """By lmms-eval's conventions: a picture, the path of one, else a video's path, or a dict of audio."""
    if isinstance(visual, Image.Image):
        return {"type": "image", "url": visual}
    if isinstance(visual, str):
        is_image = PurePath(visual).suffix.lower() in IMAGE_SUFFIXES
        return {"type": "image" if is_image else "video", "url": visual}
    if isinstance(visual, Mapping):
        return {"type": visual.get("type", "audio"), "url": visual.get("url", visual.get("path"))}
    return {"type": type(visual).__name__}
