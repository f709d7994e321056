"""Prompts that name the objects of a row by a token each, which the language model reads as the object's vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mllm_align.contract import OBJECT_TOKEN
from mllm_align.data.errors import DataError
from mllm_align.data.matching import box_in_words
from mllm_align.data.objects import ImageObject
from mllm_align.data.schema import parse_row


def with_object_tokens(raw: Mapping[str, Any], index: int | None = None) -> dict[str, Any]:
    """A row whose prompt tells, before its question, what there is on each picture: after CoLVA (2025),
    https://arxiv.org/abs/2501.04670, in words of our own.

    "Picture 1 shows [100, 200, 300, 400] <object>." and a line for each further picture: an object is where it is, in
    thousandths as matching questions write boxes, and `<object>`, which `vision.ObjectPrompts` gives its vector. What
    it is called is not told.

    Args:
        raw: A canonical row with `objects`.
        index: Its place, for errors.

    Returns:
        The row with its prompt as messages, and its objects in the order of their tokens: picture by picture.

    Raises:
        DataError: If the row has no objects, or its prompt has the token already.

    Example:
        >>> row = {"image": "cat.jpg", "prompt": "Who?", "chosen": "x", "objects": [{"box": [0, 0, 0.5, 1]}]}
        >>> with_object_tokens(row)["prompt"][0]["content"][1]["text"]
        'Picture 1 shows [0, 0, 500, 1000] <object>.\\n'
    """
    row = parse_row(raw, index)
    objects = row.objects.get("image", ())
    if not objects:
        raise DataError(f"{row.name}: it has no objects to name: fill the column 'objects'")
    texts = [part.get("text", "") for message in row.messages for part in message["content"]]
    if any(OBJECT_TOKEN in text for text in texts):
        raise DataError(f"{row.name}: its prompt has {OBJECT_TOKEN} already: take it out of 'prompt'")
    order = sorted(range(len(objects)), key=lambda place: objects[place].image)
    told = {"type": "text", "text": _listed([objects[place] for place in order])}
    messages = [message.copy() for message in row.messages]
    first = next(message for message in messages if message["role"] == "user")
    content: list[Any] = list(first["content"])
    behind = max((place + 1 for place, part in enumerate(content) if part["type"] == "image"), default=0)
    first["content"] = [*content[:behind], told, *content[behind:]]
    others = {key: value for key, value in raw.items() if key not in ("image", "system")}
    own = [raw["objects"][place] for place in order]
    return others | {"images": list(row.images), "prompt": messages, "objects": own, **row.responses}


def _listed(objects: Sequence[ImageObject]) -> str:
    lines = []
    for image in dict.fromkeys(each.image for each in objects):
        own = (f"{box_in_words(each)} {OBJECT_TOKEN}" for each in objects if each.image == image)
        lines.append(f"Picture {image + 1} shows {', '.join(own)}.\n")
    return "".join(lines)
