"""Conversations as single questions, for makers of data that ask one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mllm_align.data.errors import DataError
from mllm_align.data.loading import undecoded
from mllm_align.data.schema import parse_row


class FirstTurns(Sequence[Mapping[str, Any]]):
    """Rows of which every conversation is cut to its first question and the answer to that; all others as they are.

    Args:
        rows: Canonical rows.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = undecoded(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: Any) -> Any:
        """One row."""
        return first_turn(self.rows[number])

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return (self[number] for number in range(len(self)))


def first_turn(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row that ends with its first answer; as it is where it has no other, or cannot be read."""
    try:
        row = parse_row({**raw, "contrast_image": None, "contrast_index": None})
    except DataError:
        return raw
    roles = [message["role"] for message in row.messages]
    start = 1 if roles[:1] == ["system"] else 0
    if roles[start : start + 2] != ["user", "assistant"]:
        return raw
    answer = "".join(part.get("text", "") for part in row.messages[start + 1]["content"])
    own = {"prompt": list(row.messages[: start + 1]), "chosen": answer, "images": list(row.images)}
    absent = dict.fromkeys(("system", "image", "messages", "completion", "rejected"))
    return {**raw, **absent, **own}
