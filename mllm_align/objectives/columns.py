"""The columns that a contrast may be of."""

from __future__ import annotations

from collections.abc import Sequence

IMAGES, TEXTS = ("image", "contrast_image"), ("chosen", "rejected")


def image_columns(owner: str, columns: str | Sequence[str]) -> tuple[str, ...]:
    """One image column or several; ValueError for anything else, `owner` is named in the message."""
    named = (columns,) if isinstance(columns, str) else tuple(columns)
    if not named or any(column not in IMAGES for column in named):
        raise ValueError(f"{owner}: columns must be among {', '.join(IMAGES)}, got {columns!r}")
    return named


def check_sides(owner: str, image: str, text: str) -> None:
    """Raises ValueError unless these are an image column and a response column; `owner` is named in the message."""
    for name, value, known in (("image", image, IMAGES), ("text", text, TEXTS)):
        if value not in known:
            raise ValueError(f"{owner}: {name} must be {' or '.join(map(repr, known))}, got {value!r}")
