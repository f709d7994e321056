"""What is wrong with rows that cannot be used, counted by kind."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from mllm_align.data.errors import DataError
from mllm_align.data.images import load_image

EXAMPLES = 5


class RowProblem(DataError):
    """A row that cannot be used.

    Attributes:
        kind: What is wrong with it, in two or three words; rows are counted by it.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __str__(self) -> str:
        """As it is recorded: `kind: message`."""
        return f"{self.kind}: {self.args[0]}"


def read_picture(value: Any, where: str) -> Image.Image:
    """A picture, upright RGB.

    Raises:
        RowProblem: If the file is missing or damaged.
    """
    try:
        return load_image(value, where)
    except DataError as error:
        path = image_path(value)
        missing = path is not None and not path.is_file()
        raise RowProblem("missing file" if missing else "damaged image", str(error)) from None


def image_path(value: Any) -> Path | None:
    """The file that an image column names, where it names one."""
    if isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else None
    return Path(value).expanduser() if isinstance(value, str | os.PathLike) else None


@dataclass
class Problems:
    """Rows that could not be used, by kind, with the first messages of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, problem: str | RowProblem) -> None:
        """One more, as `kind: message`."""
        kind, _, message = str(problem).partition(": ")
        self.counts[kind] += 1
        found = self.examples.setdefault(kind, [])
        if len(found) < EXAMPLES:
            found.append(message)

    def as_dict(self) -> dict[str, Any]:
        """`{kind: {"rows": how many, "examples": the first messages}}`."""
        return {kind: {"rows": count, "examples": self.examples[kind]} for kind, count in sorted(self.counts.items())}
