"""Files that appear whole or not at all, and their names where those are no Unicode."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: Any) -> None:
    """Writes bytes (or a buffer of them) under another name first, then renames: all of a file or nothing.

    Raises:
        OSError: If the disk refuses; what was there before is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(draft, "wb") as file:
            file.write(content)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def as_text(name: str) -> str:
    """A file name as JSON and Parquet can hold it: bytes that are no Unicode are written out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
