"""Train, validation and test of scenes that are more than one picture, disjoint by what every picture shows."""

from __future__ import annotations

import hashlib
import json
from typing import Any

# Tenths of all contents.
_SHARES = {"train": 5, "validation": 2, "test": 3}
PARTS = tuple(_SHARES)
_OWNER = tuple(name for name, share in _SHARES.items() for _ in range(share))


def part_of(content: Any) -> str:
    """The only part in which a picture of this content, given as what JSON can hold, may be."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return _OWNER[int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % len(_OWNER)]


def check_part(split: str) -> None:
    """Raise ValueError for an unknown part."""
    if split not in PARTS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(PARTS)}")
