"""The canonical row: what columns it may have, what they may hold, and how a raw row becomes one.

| column | holds |
|---|---|
| `image` or `images` | one image, or a list; neither: a text-only row |
| `prompt` | a question (`str`), or messages `[{"role", "content"}, ...]` that end with a user turn |
| `chosen`, `rejected` | a response (`str`), or `[{"role": "assistant", "content"}]` |
| `contrast_image` | the image that `contrast_image` views show instead: one, or a list as long as `images` |
| `contrast_index` | which of several images a single `contrast_image` replaces, counted from 0 |
| `objects`, `contrast_objects` | what is on the images, or on the contrast image(s): see `mllm_align.data.objects` |
| `system` | a system prompt |
| `id`, `source` | a stable name of the row; the data source it came from (default `"default"`) |
| any other, such as `caption`, `negatives`, `positives` | a text or a list of texts, for objectives that embed it |

TRL's rows are canonical rows; so are its rows with an implicit prompt (`chosen` and `rejected` are whole
conversations), its prompt-completion rows (`completion` is read as `chosen`) and its language-modelling rows
(`messages`, whose last assistant turn is the response). Other columns are ignored, except for video, which is refused.
A row whose texts are only embedded needs no prompt.
An image is whatever `mllm_align.data.images.load_image` reads. None counts as absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from mllm_align.data.errors import DataError, quoted
from mllm_align.data.messages import Message, place_images, read_messages, read_response
from mllm_align.data.objects import ImageObject, read_objects

__all__ = ["COLUMNS", "DEFAULT_SOURCE", "RESPONSES", "DataError", "Row", "missing_column", "parse_row", "row_name"]

RESPONSES = ("chosen", "rejected")
OBJECTS = {"image": "objects", "contrast_image": "contrast_objects"}
COLUMNS = (
    *("id", "source", "image", "images", "system", "prompt"),
    *RESPONSES,
    *("contrast_image", "contrast_index"),
    *OBJECTS.values(),
)
DEFAULT_SOURCE = "default"
# Why a row of another format could not be converted; to read it is that error.
UNREADABLE = "unreadable"
SYNONYMS = {
    "prompt": ("question", "instruction", "instruction_prompt", "query", "problem", "conversations"),
    "chosen": ("response", "answer", "chosen_response", "output", "conversations"),
    "rejected": ("rejected_response", "reject", "rejected_conversations"),
    "image": ("img", "image_path", "img_path", "file_name", "chosen_images"),
    "contrast_image": ("retrieved_image", "rejected_images", "rejected_image", "negative_image", "image_2"),
}


@dataclass(frozen=True)
class Row:
    """One parsed row; images are still as they were given (paths, bytes, PIL, ...).

    Attributes:
        id: The row's own id, or None.
        source: Name of the data source.
        images: The row's own images, one per placeholder in `messages`.
        contrast_images: The same list with the contrast image(s) in place, or None where the row has none.
        messages: The prompt, every content a list of `{"type": "image"}` and `{"type": "text", "text": ...}` parts.
        responses: Text of the responses that the row has.
        name: How errors speak of the row.
        columns: Names of the columns that held something.
        objects: Per image column of which the row names objects, those on its images.
        texts: Per further column that holds a text or a list of texts, these.
    """

    id: str | None
    source: str
    images: tuple[Any, ...]
    contrast_images: tuple[Any, ...] | None
    messages: tuple[Message, ...]
    responses: Mapping[str, str]
    name: str
    columns: tuple[str, ...]
    objects: Mapping[str, tuple[ImageObject, ...]] = field(default_factory=dict)
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def images_of(self, column: str | None) -> tuple[Any, ...] | None:
        """The images that a view of `column` shows; None where the row has no such column.

        Raises:
            DataError: If the column is not one that a view may name.
        """
        if column is None:
            return ()
        if column == "image":
            return self.images
        if column == "contrast_image":
            return self.contrast_images
        raise DataError(f"view of image column {column!r}: a view's image is 'image', 'contrast_image' or None")


def row_name(raw: Mapping[str, Any], index: int | None = None) -> str:
    """How errors speak of a row: by place, by id, or by the beginning of its prompt."""
    identity = raw.get("id")
    place = [f"row {index}"] if index is not None else []
    named = [f"id {str(identity)!r}"] if identity is not None else []
    if place or named:
        return place[0] + (f" ({named[0]})" if named else "") if place else f"row with {named[0]}"
    return f"row with prompt {quoted(raw.get('prompt'))}"


def missing_column(column: str, columns: Sequence[str], where: str, purpose: str = "") -> DataError:
    """The error for a column that a row does not have, with the nearest one that it has."""
    others = [name for name in columns if name not in COLUMNS]
    synonyms = [name for name in SYNONYMS.get(column, ()) if name in others]
    near = synonyms or get_close_matches(column, others, n=1, cutoff=0.6)
    renamed = f"columns={{{column!r}: {near[0]!r}}}" if near else ""
    mend = f"; is it {near[0]!r}? Then load with {renamed} (in a recipe: the source's `columns`)" if near else ""
    return DataError(f"{where}: no column {column!r}{purpose}; there is {', '.join(columns) or 'none'}{mend}")


def parse_row(raw: Mapping[str, Any], index: int | None = None) -> Row:
    """Read one raw row.

    Args:
        raw: Column values; columns may be missing or None where the table above allows it.
        index: Place of the row in its dataset, for errors.

    Raises:
        DataError: Naming the row, the column and the mend.
    """
    if not isinstance(raw, Mapping):
        raise DataError(f"a row must be a mapping of columns, got {type(raw).__name__}: {quoted(raw)}")
    where = row_name(raw, index)
    given = {key: value for key, value in raw.items() if value is not None}
    if given.pop(UNREADABLE, ""):
        raise DataError(f"{where}: {raw[UNREADABLE]}")
    _refuse_video(given, where)
    texts = _texts(given)
    renamed = any(name in given for column in ("prompt", "chosen") for name in SYNONYMS[column])
    prompt, responses = _prompt_and_responses(given, where, bare=bool(texts) and not renamed)
    messages, embedded = ([], []) if prompt is None else read_messages(prompt, where)
    messages = _with_system(messages, given.get("system"), where)
    images = _images(given, embedded, where)
    source = given.get("source", DEFAULT_SOURCE)
    if not isinstance(source, str):
        raise DataError(f"{where}: column 'source' must be a name, got {type(source).__name__}")
    contrast = _contrast_images(given, images, where)
    counts = {"image": len(images), "contrast_image": len(contrast or ())}
    return Row(
        id=str(given["id"]) if "id" in given else None,
        source=source,
        images=images,
        contrast_images=contrast,
        messages=tuple(place_images(messages, len(images), where)),
        responses=responses,
        name=where,
        columns=tuple(given),
        objects={
            column: read_objects(given[name], counts[column], f"{where}, column {name!r}")
            for column, name in OBJECTS.items()
            if name in given
        },
        texts=texts,
    )


def _refuse_video(given: Mapping[str, Any], where: str) -> None:
    for column in ("video", "videos"):
        if given.get(column):
            raise DataError(f"{where}: column {column!r}: video is out of scope; give frames as 'images'")


def _texts(given: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Per column that is not one of the table's what it holds of texts; lists of lists are joined."""
    found = {}
    for column, value in given.items():
        if column in COLUMNS or column in ("messages", "completion"):
            continue
        parts = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else [None]
        flat = [each for part in parts for each in (part if isinstance(part, list | tuple) else [part])]
        if all(isinstance(each, str) for each in flat):
            found[column] = tuple(flat)
    return found


def _prompt_and_responses(given: Mapping[str, Any], where: str, bare: bool) -> tuple[Any, dict[str, str]]:
    """The prompt as given or implied, None where a `bare` row may go without; and the response texts."""
    values = {column: given[column] for column in RESPONSES if column in given}
    prompt = given.get("prompt")
    if "chosen" not in values and "completion" in given:
        values["chosen"] = given["completion"]
    if prompt is None and not values and "messages" in given:
        values["chosen"] = given["messages"]
    if prompt is None and not values and bare and "messages" not in given:
        return None, {}
    if prompt is None:
        prompt, values = _split_conversations(values, given, where)
    return prompt, {column: read_response(value, column, where) for column, value in values.items()}


def _split_conversations(
    values: Mapping[str, Any], given: Mapping[str, Any], where: str
) -> tuple[list[Any], dict[str, Any]]:
    """An implicit prompt: all turns before the last one, the same in every response column."""
    whole = {column: value for column, value in values.items() if isinstance(value, list) and len(value) > 1}
    if not whole or len(whole) < len(values):
        raise missing_column("prompt", list(given), where)
    prompts = [value[:-1] for value in whole.values()]
    if any(prompt != prompts[0] for prompt in prompts[1:]):
        raise DataError(
            f"{where}: no column 'prompt', and the conversations in 'chosen' and 'rejected' differ before their last "
            "turn; give the shared turns as 'prompt'"
        )
    return prompts[0], {column: value[-1:] for column, value in whole.items()}


def _with_system(messages: list[Message], system: Any, where: str) -> list[Message]:
    if system is None or system == "":
        return messages
    if not isinstance(system, str):
        raise DataError(f"{where}: column 'system' must be text, got {type(system).__name__}")
    if not messages:
        raise missing_column("prompt", (), where, ", which 'system' belongs to")
    if messages[0]["role"] == "system":
        raise DataError(f"{where}: a system prompt both in column 'system' and in 'prompt'; keep one")
    return [{"role": "system", "content": system}, *messages]


def _images(given: Mapping[str, Any], embedded: Sequence[Any], where: str) -> tuple[Any, ...]:
    if "image" in given and given.get("images"):
        raise DataError(f"{where}: both 'image' and 'images'; keep one of the two columns")
    if "images" in given and not isinstance(given["images"], list | tuple):
        raise DataError(
            f"{where}: column 'images' must be a list, got {type(given['images']).__name__}; one image goes to 'image'"
        )
    if isinstance(given.get("image"), list | tuple):
        raise DataError(f"{where}: column 'image' must be one image, got a list; several images go to 'images'")
    images = (given["image"],) if "image" in given else tuple(given.get("images", ()))
    if any(image is None for image in images):
        raise DataError(f"{where}: an entry of column 'images' is None")
    if images and embedded:
        raise DataError(f"{where}: images both inside 'prompt' and in a column of their own; keep one of the two")
    return images or tuple(embedded)


def _contrast_images(given: Mapping[str, Any], images: tuple[Any, ...], where: str) -> tuple[Any, ...] | None:
    """The own images with the contrast image(s) in their place."""
    contrast, index = given.get("contrast_image"), given.get("contrast_index")
    if contrast is None:
        return None
    if not images:
        raise missing_column("image", list(given), where, ", which 'contrast_image' would replace")
    if isinstance(contrast, list | tuple):
        if index is not None:
            raise DataError(f"{where}: 'contrast_image' is a list, so 'contrast_index' says nothing; drop one of them")
        if len(contrast) != len(images) or any(image is None for image in contrast):
            raise DataError(
                f"{where}: 'contrast_image' lists {len(contrast)} images for {len(images)}; give one for each, or a "
                "single one with 'contrast_index'"
            )
        return tuple(contrast)
    if index is None and len(images) > 1:
        raise DataError(
            f"{where}: one 'contrast_image' for {len(images)} images does not say which of them it replaces; add "
            f"'contrast_index' (0 to {len(images) - 1}), or give a list of {len(images)}"
        )
    if index is not None and (isinstance(index, bool) or not isinstance(index, int)):
        raise DataError(f"{where}: column 'contrast_index' must be an integer, got {type(index).__name__}")
    place = index or 0
    if not 0 <= place < len(images):
        raise DataError(f"{where}: contrast_index {place} with {len(images)} image(s); it counts from 0")
    return (*images[:place], contrast, *images[place + 1 :])
