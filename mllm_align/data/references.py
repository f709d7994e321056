"""Images with names: each is introduced by its own, and what is asked and answered speaks of it by that.

    {"images": [a, b], "image_names": ["the map", "the photo"], "prompt": "Is [[the photo]] taken on [[the map]]?"}

becomes a conversation that says "the map is <image>", "the photo is <image>", and then asks. The form is that of MMICL
(Zhao et al., 2023), https://arxiv.org/abs/2309.07915, whose references are "image 0", "image 1", ...: the names that
images have here where a row gives none. A name in double brackets is checked against what was declared; a name without
them is text like any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

from mllm_align.data.errors import DataError, quoted
from mllm_align.data.messages import Message, place_images, read_messages, read_response
from mllm_align.data.schema import RESPONSES, row_name

NAMES = "image_names"
_SLOT = re.compile(r"\[\[([^\[\]]*)\]\]")
_NUMBERED = re.compile(r"(.*\D)(\d+)", re.DOTALL)


def declare_references(row: Mapping[str, Any], names: Sequence[str] | None = None) -> dict[str, Any]:
    """A row whose prompt introduces every image by its name.

    Where the prompt places its images (`mllm_align.data.messages`), each is introduced in its place; else all of them
    before the first user turn. A chat template that puts images before all text undoes that: see `interleaves`.

    Args:
        row: With `images` (or one `image`), `prompt`, and the responses that it has. Prompt and responses may speak of
            an image as `[[its name]]`.
        names: Of the images; by default the row's `image_names`, and without these "image 0", "image 1", ...

    Returns:
        The row with `prompt` as messages, names in place of bracketed ones, and without `image_names`.

    Raises:
        DataError: If the row has no image, there are not as many names as images, two of them cannot be told apart, or
            a text speaks of an image that is not declared, or of more than one.

    Example:
        >>> row = {"images": ["a.png", "b.png"], "prompt": "Where is a dog?", "chosen": "In [[image 1]]."}
        >>> declared = declare_references(row)
        >>> [part.get("text", "<image>") for part in declared["prompt"][0]["content"]]
        ['image 0 is ', '<image>', '\\nimage 1 is ', '<image>', '\\nWhere is a dog?']
        >>> declared["chosen"]
        'In image 1.'
    """
    where = row_name(row)
    images = images_of(row, where)
    found = names_of(row, names, where)
    messages, embedded = read_messages(row.get("prompt"), where)
    if embedded:
        raise DataError(f"{where}: images inside 'prompt': give them as 'images', so that they can be named")
    responses = {column: read_response(row[column], column, where) for column in RESPONSES if row.get(column)}
    told = {column: _named(text, found, f"{where}, column {column!r}") for column, text in responses.items()}
    turns = [{**turn, "content": _spoken(turn["content"], found, where)} for turn in messages]
    placed = place_images(turns, len(images), where)  # type: ignore[arg-type]
    kept = {key: value for key, value in row.items() if key != NAMES}
    return {**kept, "prompt": _introduced(placed, found), **told}


def with_references(rows: Any, names: Sequence[str] | None = None) -> Any:
    """All rows of a dataset, declared.

    Args:
        rows: A `datasets.Dataset`, a stream of it, or a list.
        names: As `declare_references` takes them, the same for every row.

    Raises:
        DataError: For the first row that cannot be declared; of a stream, when it is read.
    """
    if isinstance(rows, list | tuple):
        return [declare_references(row, names) for row in rows]
    columns = rows.column_names
    extra = [NAMES] if columns is not None and NAMES in columns else []
    return rows.map(partial(_declared_texts, names=names), remove_columns=extra)


def reordered(row: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """The same row with its images in another order, each with its name and with the objects that are on it.

    What is asked and answered stays as it is, and stays right, for it speaks of images by their names. An order that
    is drawn keeps a model from answering by place.

    Args:
        row: As `declare_references` takes it, before it is declared. Without names, they are those of the old order.
        order: Places of the old order in the new one.

    Raises:
        DataError: If the order is none of all images, or the prompt places its images itself.
    """
    where = row_name(row)
    images = images_of(row, where)
    names = names_of(row, None, where)
    places = list(order)
    if sorted(places) != list(range(len(images))):
        raise DataError(f"{where}: the order {places!r} does not name each of {len(images)} images once")
    messages, _ = read_messages(row.get("prompt"), where)
    given = [message["content"] for message in messages]
    if any("<image>" in each if isinstance(each, str) else _holds_images(each) for each in given):
        raise DataError(f"{where}: the prompt says where its images stand: reorder a row before it is declared")
    made = {key: value for key, value in row.items() if key != "image"}
    made |= {"images": [images[place] for place in places], NAMES: [names[place] for place in places]}
    if isinstance(row.get("contrast_image"), list | tuple):
        made["contrast_image"] = [row["contrast_image"][place] for place in places]
    if row.get("contrast_index") is not None:
        made["contrast_index"] = places.index(row["contrast_index"])
    for column in ("objects", "contrast_objects"):
        if row.get(column):
            made[column] = [{**each, "image": places.index(each.get("image") or 0)} for each in row[column]]
    return made


def interleaves(processor: Any) -> bool:
    """Whether a chat template leaves images where they stand among the text.

    The published one of LLaVA-1.5 does not: it puts all of them first, and a name then stands beside no image. Such a
    model needs another `chat_template` before it is trained with references.
    """
    image, first, last = {"type": "image"}, {"type": "text", "text": "one"}, {"type": "text", "text": "two"}
    said = ([first, image, last, image], [first, last, image, image])
    rendered = [processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False) for parts in said]
    return rendered[0] != rendered[1]


def images_of(row: Mapping[str, Any], where: str) -> list[Any]:
    """The images of a row, in order.

    Raises:
        DataError: If there is none.
    """
    images = list(row.get("images") or ([row["image"]] if row.get("image") is not None else ()))
    if not images:
        raise DataError(f"{where}: no image that could be named; fill 'images'")
    return images


def names_of(row: Mapping[str, Any], names: Sequence[str] | None, where: str) -> list[str]:
    """The names of a row's images, in order.

    Raises:
        DataError: If they are not as many as the images, or cannot be told apart.
    """
    number = len(images_of(row, where))
    given = row.get(NAMES) if names is None else names
    found = [f"image {place}" for place in range(number)] if given is None else list(given)
    if len(found) != number:
        raise DataError(f"{where}: {len(found)} name(s) for {number} image(s); {NAMES!r} needs one for each")
    for place, name in enumerate(found):
        if not isinstance(name, str) or not name or name != name.strip() or set(name) & set("[]"):
            raise DataError(f"{where}: name {place} must be text without brackets or outer spaces, got {quoted(name)}")
        for other in found[:place]:
            if _within(name, other) or _within(other, name):
                raise DataError(
                    f"{where}: the names {other!r} and {name!r} cannot be told apart: no name may be another's, or a "
                    "part of it"
                )
    return found


def _declared_texts(row: Mapping[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
    """What a declared row has that the row has not: its images need not be written again."""
    return {key: value for key, value in declare_references(row, names).items() if key in ("prompt", *RESPONSES)}


def _within(part: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", name, re.IGNORECASE) is not None


def _holds_images(parts: Sequence[Mapping[str, Any]]) -> bool:
    return any(part["type"] == "image" or "<image>" in part.get("text", "") for part in parts)


def _spoken(content: Any, names: Sequence[str], where: str) -> Any:
    """The content of a turn with names in place of what is in brackets."""
    place = f"{where}, column 'prompt'"
    if isinstance(content, str):
        return _named(content, names, place)
    return [{**each, "text": _named(each["text"], names, place)} if "text" in each else each for each in content]


def _named(text: str, names: Sequence[str], where: str) -> str:
    """The text with every bracketed name as the name; numbered names that it has without brackets are checked too."""
    spoken = _SLOT.sub(lambda found: _declared(found[1], names, where), text)
    for stem in {found[1] for name in names if (found := _NUMBERED.fullmatch(name))}:
        for mention in re.findall(rf"(?<!\w){re.escape(stem)}\d+(?!\w)", spoken, re.IGNORECASE):
            _declared(mention, names, where)
    return spoken


def _declared(given: str, names: Sequence[str], where: str) -> str:
    """The name that is meant."""
    exact = [name for name in names if name.casefold() == given.strip().casefold()]
    if exact:
        return exact[0]
    listed = ", ".join(map(repr, names))
    several = [name for name in names if _within(given.strip(), name)] if given.strip() else []
    if len(several) > 1:
        raise DataError(f"{where}: the reference {given!r} may be any of {', '.join(map(repr, several))}: name one")
    near = several or get_close_matches(given, names, n=1)
    mend = f"; did you mean {near[0]!r}?" if near else ""
    raise DataError(f"{where}: no image is called {given!r}; there are {listed}{mend}")


def _introduced(messages: Sequence[Message], names: Sequence[str]) -> list[Message]:
    """The messages with "NAME is" before each image, on a line of its own."""
    left = iter(names)
    turns: list[Message] = []
    for message in messages:
        parts: list[dict[str, str]] = []
        for part in message["content"]:
            line = "\n" if parts else ""
            if part["type"] == "image":
                parts += [{"type": "text", "text": f"{line}{next(left)} is "}, dict(part)]
            else:
                after = line if parts and parts[-1]["type"] == "image" else ""
                parts.append({"type": "text", "text": f"{after}{part['text']}"})
        turns.append({"role": message["role"], "content": parts})
    return turns
