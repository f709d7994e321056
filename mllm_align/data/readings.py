"""What is read for an embedding: one column alone before an instruction, as the prompt of an answer never given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mllm_align.contract import Feature, Needs, View
from mllm_align.contract.needs import IMAGE_COLUMNS
from mllm_align.data.messages import Message
from mllm_align.data.schema import RESPONSES, DataError, Row, missing_column

# Stands for the answer, of which nothing is read.
ANSWER = "a"


class Reading(NamedTuple):
    """One conversation that is read and not scored.

    Attributes:
        view: Of the feature that wants it.
        messages: Of the conversation, which ends with the user's turn.
        images: Shown in it.
        where: How errors speak of it.
    """

    view: View
    messages: tuple[Message, ...]
    images: tuple[Any, ...]
    where: str


def readings(
    row: Row, needs: Needs, has: Callable[[Row, View], bool], replace: Mapping[str, str]
) -> Iterator[Reading]:
    """What is read of a row for the embeddings that its objective needs, several texts of a column in their order.

    A row whose own optional views are trained on may do without a column that an embedding is of.

    Args:
        row: The row.
        needs: Of its objective.
        has: Whether a row has a view.
        replace: What is put in the place of prompts that are a key of it.

    Raises:
        DataError: If the row has no such column, or what is in it cannot be read.
    """
    seen = set()
    for feature in needs.features:
        if feature.source != "embedding" or feature.view in seen or feature.view is None:
            continue
        seen.add(feature.view)
        found = _conversations(row, feature, replace)
        if found is None:
            if feature.column not in row.columns and any(has(row, view) for view in needs.optional):
                continue
            raise _absent(row, feature)
        if len(found) > 1 and not feature.several:
            raise DataError(
                f"{row.name}: column {feature.column!r} holds {len(found)} texts, of which feature {feature.name!r} "
                "takes one: give it one, or let route_captions draw one of `captions`"
            )
        for messages, images in found:
            where = f"{row.name}, column {feature.column!r}"
            yield Reading(feature.view, tuple(replaced(messages, replace)), images, where)


def _absent(row: Row, feature: Feature) -> DataError:
    """What to say of a column that holds nothing to be read."""
    purpose = f", of which feature {feature.name!r} is taken"
    if feature.column in row.columns:
        return DataError(f"{row.name}: column {feature.column!r}{purpose}, holds neither a text nor a list of texts")
    if feature.column == "caption" and "captions" in row.columns:
        return DataError(
            f"{row.name}: no column 'caption'{purpose}; there is 'captions': let them be sorted by length "
            "(`route_captions` beside the source's `path`; in Python mllm_align.data.routing)"
        )
    if feature.column != "prompt" and feature.column not in (*IMAGE_COLUMNS, *RESPONSES):
        purpose += " (an empty list where there is none)"
    return missing_column(feature.column, row.columns, row.name, purpose)


def replaced(messages: Sequence[Message], texts: Mapping[str, str]) -> list[Message]:
    """The same messages, every text part that is a key of `texts` with its value in its place."""
    return [
        {
            "role": message["role"],
            "content": [
                {**part, "text": texts.get(part["text"], part["text"])} if part["type"] == "text" else part
                for part in message["content"]
            ],
        }
        for message in messages
    ]


def _conversations(
    row: Row, feature: Feature, replace: Mapping[str, str]
) -> list[tuple[Sequence[Message], tuple[Any, ...]]] | None:
    """Messages and images of each; None where the row lacks the column."""
    if feature.column == "prompt":
        if not row.messages:
            return None
        return [(row.messages, row.images)]
    if feature.column in IMAGE_COLUMNS:
        images = row.images_of(feature.column)
        if images is None:
            return None
        asked = [*[{"type": "image"}] * len(images), {"type": "text", "text": feature.prompt or ""}]
        return [([{"role": "user", "content": asked}], images)] if images else []
    texts = texts_of(row, feature.column)
    if texts is None:
        return None
    empty = next((place for place, text in enumerate(texts) if not text.strip()), None)
    if empty is not None:
        raise DataError(f"{row.name}: text {empty} of column {feature.column!r} is empty; fill it or leave it out")
    # One part: what templates put between two could become one token with the instruction's first word.
    asked = replace.get(feature.prompt or "", feature.prompt)
    said = [[{"type": "text", "text": f"{text}\n{asked}"}] for text in texts]
    return [([{"role": "user", "content": parts}], ()) for parts in said]


def texts_of(row: Row, column: str) -> tuple[str, ...] | None:
    """The texts of a column; of "negatives" also those of objects that cover the whole picture, as `data negatives`
    writes them. None where the row has no such column."""
    if column in row.responses:
        return (row.responses[column],)
    found = row.texts.get(column)
    whole = [each for each in row.objects.get("image", ()) if column == "negatives" and each.box == (0, 0, 1, 1)]
    if not whole:
        return found
    return tuple(dict.fromkeys([*(found or ()), *(text for each in whole for text in each.negatives)]))
