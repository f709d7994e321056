"""Files that appear whole or not at all."""

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
