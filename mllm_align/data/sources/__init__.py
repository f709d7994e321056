"""Public row formats: one file each, with `convert(row)` that gives a canonical row.

Those whose files are no tables of rows have `rows_of(path)`, which reads such rows out of them. Others may have
`columns(types)`: the types of what `convert` gives, from those of the file's columns.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from mllm_align.data.errors import DataError, quoted

FORMATS = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def converter(name: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """The `convert` of a format; a row that holds something else than its authors publish is a `DataError`.

    Raises:
        DataError: If there is no such format; the nearest one is named.
    """
    if name not in FORMATS:
        near = get_close_matches(name, FORMATS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"unknown row format {name!r}; there is {', '.join(FORMATS)}{hint}")
    return partial(_converted, name, importlib.import_module(f"mllm_align.data.sources.{name}").convert)


def reader(name: str) -> Callable[[Path], Iterator[dict[str, Any]]] | None:
    """What reads the rows out of a format's own files, where these are no tables of rows; else None.

    Raises:
        DataError: If there is no such format.
    """
    converter(name)
    return getattr(importlib.import_module(f"mllm_align.data.sources.{name}"), "rows_of", None)


def column_types(name: str, given: Mapping[str, Any] | None) -> datasets.Features | None:
    """Types of all columns of converted rows; None where a format, or this file of it, does not tell.

    Told beforehand, a table need not be of the types of its first rows, where a column may be empty or not there.

    Args:
        name: Of the format.
        given: Types of the file's columns, where they are known.
    """
    columns = getattr(importlib.import_module(f"mllm_align.data.sources.{name}"), "columns", None)
    if columns is None or given is None:
        return None
    try:
        return datasets.Features({**given, **columns(given)})
    except (KeyError, AttributeError, TypeError):  # not a file of this format, which each of its rows will say
        return None


def _converted(
    name: str, convert: Callable[[Mapping[str, Any]], dict[str, Any]], row: Mapping[str, Any]
) -> dict[str, Any]:
    try:
        new = convert(row)
    except (TypeError, AttributeError, IndexError) as error:  # None, or text where a list should be
        where = f"row {quoted(row.get('id', row.get('idx')))} with {', '.join(row)}"
        raise DataError(f"{where} is none of format {name!r}: {error}") from error
    except KeyError as error:
        raise DataError(f"a row of format {name!r} has no {error}; it has {', '.join(row)}") from error
    return {"id": row["id"], **new} if row.get("id") is not None else new
