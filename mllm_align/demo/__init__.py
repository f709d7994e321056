"""What only the demo and the studies need: the shipped base model of the world, and the script that trains it."""

from __future__ import annotations

from pathlib import Path


def base_path() -> Path:
    """The folder of the shipped base model: weights, tokenizer, processor and model card."""
    return Path(__file__).parent / "base"


__all__ = ["base_path"]
