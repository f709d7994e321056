"""What an encoder is given (images, texts, whole rows) as rows of a batch, and the feature that is measured of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mllm_align.contract import Embedding, Feature

# Column that a text is put in to be embedded; any that is no response would do.
TEXT_COLUMN = "caption"
# A row must ask something, though nothing of it is read where a feature has an instruction of its own.
UNREAD_PROMPT = "?"
ROWS, SIDES = "rows", ("image", "text")


class Reading(NamedTuple):
    """Rows that are alike, and what is measured of them.

    Attributes:
        rows: Canonical rows.
        feature: Measured of each.
        side: Whose head makes its vector.
    """

    rows: Sequence[Mapping[str, Any]]
    feature: Feature
    side: str


def images_to_read(embedding: Embedding, images: Any) -> Reading:
    """Entries that are one image each, or a list of several that belong together.

    Raises:
        ValueError: If they are no list, an entry lists no image, a file is not there, or the embedding's image side is
            a whole prompt.
    """
    feature = embedding.features["image"]
    if feature.column == "prompt":
        raise ValueError(
            "this embedding was trained on images with prompts of their own, not on images alone: give rows, each "
            "with 'image' (or 'images') and 'prompt'"
        )
    rows: list[dict[str, Any]] = []
    for place, entry in enumerate(_entries(images, "images")):
        own = list(entry) if isinstance(entry, list | tuple) else [entry]
        if not own:
            raise ValueError(f"images[{place}] lists no image: give one or more, or leave it out")
        for image in own:
            _refuse_missing(image, f"images[{place}]")
        rows.append({"images": own, "prompt": feature.prompt or UNREAD_PROMPT})
    return Reading(rows, feature._replace(column="image"), "image")


def texts_to_read(embedding: Embedding, texts: Any) -> Reading:
    """Texts, which are read without any image.

    Raises:
        ValueError: If they are no list, one is empty or no text, or texts alone are not what the embedding reads.
    """
    feature = embedding.features["text"]
    if feature.source == "text":
        raise ValueError(
            "this embedding reads a text as the response to a prompt, not alone: encode(rows=[...], side='text') "
            f"takes rows with 'prompt' and {feature.column!r}"
        )
    if feature.column == "prompt":
        raise ValueError(
            "this embedding reads texts as prompts of their own: give rows with 'prompt', and side='text'"
        )
    rows = []
    for place, text in enumerate(_entries(texts, "texts")):
        if not isinstance(text, str):
            raise ValueError(f"texts[{place}] must be a text, not {type(text).__name__}; images go to images=")
        if not text.strip():
            raise ValueError(f"texts[{place}] is empty: give something to read, or leave it out")
        rows.append({TEXT_COLUMN: text})
    return Reading(rows, feature._replace(column=TEXT_COLUMN), "text")


def rows_to_read(embedding: Embedding, rows: Any, side: str | None) -> Reading:
    """Whole rows, their own prompts with their images; or with a side that side's columns, as in training.

    Raises:
        ValueError: If they are no list of rows, there is no such side, or whole prompts are not what it can read.
    """
    if side not in (None, *SIDES):
        raise ValueError(f"side must be 'image', 'text' or nothing, got {side!r}")
    found = _entries(rows, ROWS)
    wrong = next((place for place, row in enumerate(found) if not isinstance(row, Mapping)), None)
    if wrong is not None:
        raise ValueError(f"rows[{wrong}] is a {type(found[wrong]).__name__}, not a row: give a mapping of columns")
    if side is not None:
        return Reading(found, embedding.features[side], side)
    own = next((each for each in SIDES if embedding.features[each].column == "prompt"), "image")
    feature = embedding.features[own]
    if feature.source != "embedding":
        raise ValueError(
            f"this embedding is of an image's tokens (source {feature.source!r}), a whole prompt has none of its own: "
            "say side='image' or side='text'"
        )
    return Reading(found, feature._replace(column="prompt", prompt=None), own)


def _refuse_missing(image: Any, where: str) -> None:
    """Before anything is read: thousands of images may come first. An address has an error of its own."""
    if not isinstance(image, str | os.PathLike) or str(image).startswith(("http://", "https://")):
        return
    path = Path(image).expanduser()
    if not path.is_file():
        below = "" if path.is_absolute() else f" below the working directory {str(Path.cwd())!r}"
        raise ValueError(f"{where}: there is no image file {str(image)!r}{below}: correct the path, or leave it out")


def _entries(given: Any, name: str) -> Any:
    single = isinstance(given, str | bytes | os.PathLike | Mapping)
    # A data set of `datasets` is indexed and counted, and is no Sequence.
    if single or not (isinstance(given, Sequence) or hasattr(given, "column_names")):
        raise ValueError(f"{name} must be a list, got {type(given).__name__}: put a single one in a list")
    return given
