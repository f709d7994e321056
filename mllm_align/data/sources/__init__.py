"""Public row formats: one file each, with `convert(row)` that gives a canonical row."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from mllm_align.data.errors import DataError

FORMATS = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def converter(name: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """The `convert` of a format.

    Raises:
        DataError: If there is no such format; the nearest one is named.
    """
    if name not in FORMATS:
        near = get_close_matches(name, FORMATS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"unknown row format {name!r}; there is {', '.join(FORMATS)}{hint}")
    return importlib.import_module(f"mllm_align.data.sources.{name}").convert
