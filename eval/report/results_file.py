"""Writing `results` as JSON, and the rule that no result is overwritten by accident."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_results(results: Mapping[str, Any], path: str | Path, overwrite: bool = False) -> Path:
    """Writes `results` as indented JSON; numbers that are not finite become null.

    Args:
        results: As described in `mllm_align_eval.report`. NumPy and torch scalars are written as numbers.
        path: The file; missing folders are made.
        overwrite: Whether an existing file may be replaced.

    Returns:
        The file's path.

    Raises:
        FileExistsError: If the file exists and `overwrite` is False.
        TypeError: If something in `results` has no JSON form; the message names its place.
    """
    text = json.dumps(_plain(results, "results"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return write_new(Path(path), text, overwrite)


def write_new(path: Path, text: str, overwrite: bool) -> Path:
    """Writes a text file, refusing to replace one unless told to."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; give another path, or overwrite=True to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and moved: a run that is killed here leaves the old file or the new one, never half of one.
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    return partial.replace(path)


def _plain(value: Any, where: str) -> Any:
    """The value as JSON knows it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str | bool | int | float | None) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str | bool | int | None):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}, which has no JSON form")
