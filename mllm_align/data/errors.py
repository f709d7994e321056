"""The error for data that cannot be used."""

from __future__ import annotations

from typing import Any


class DataError(ValueError):
    """A row, a column or a file that cannot be used; the message names it and says what to do."""


def quoted(value: Any, limit: int = 60) -> str:
    """A short literal of a value for an error message."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
