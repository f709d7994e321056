"""A file of answers that any model gave: JSON lines, or a matrix of similarities."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_align_eval.items import Item
from mllm_align_eval.matrices import MATRIX_SUFFIXES, read_matrix

# A text, or a score of each choice.
Given = Mapping[str, str | Sequence[float]]


class CutText(str):
    """A text that ended because it had reached the limit of its length."""

    __slots__ = ()


def read_answers(path: str | os.PathLike[str], items: Sequence[Item] = ()) -> dict[str, str | Sequence[float]]:
    """The answers in a JSONL file of `{id, text}` or `{id, scores}`, or in a matrix of similarities (.npy, .npz).

    Beside a text may stand `"truncated": true`, where it was cut at the limit of its length.

    Args:
        path: The file.
        items: Whose order the rows of a matrix have; see `matrices.read_matrix`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: Naming the line that is no answer and why, or that has the id of an earlier one; or what a matrix
            has wrong.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no file of answers {file}")
    if file.suffix in MATRIX_SUFFIXES:
        return dict(read_matrix(file, items))
    found: dict[str, str | Sequence[float]] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            name, given = _answer(line)
        except ValueError as error:
            raise ValueError(
                f'{file}, line {number}: {error}; an answer is {{"id": ..., "text": "..."}} or '
                '{"id": ..., "scores": [...]}'
            ) from None
        if name in found:
            raise ValueError(f"{file}, line {number}: a second answer to {name!r}; the first is in line {lines[name]}")
        found[name], lines[name] = given, number
    return found


def _answer(line: bytes) -> tuple[str, str | tuple[float, ...]]:
    """Id and answer of a line; ValueError saying what is wrong with it."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos + 1})") from None
    if not isinstance(row, dict):
        raise ValueError(f"not an object but {_kind(row)}")
    if "id" not in row:
        raise ValueError(f"no id, only {', '.join(row) or 'nothing'}")
    if type(row["id"]) not in (str, int):
        raise ValueError(f"the id is no text but {_kind(row['id'])}")
    name = str(row["id"])
    if "text" in row and "scores" in row:
        raise ValueError(f"both a text and scores for {name!r}")
    if "text" in row:
        return name, _text(row, name)
    if "scores" in row:
        return name, _scores(row["scores"], name)
    raise ValueError(f"no text and no scores for {name!r}")


def _text(row: Mapping[str, Any], name: str) -> str:
    text, cut = row["text"], row.get("truncated", False)
    if not isinstance(text, str):
        hint = '; a model that says nothing has the text ""' if text is None else ""
        raise ValueError(f"the text of {name!r} is not a string but {_kind(text)}{hint}")
    if not isinstance(cut, bool):
        raise ValueError(f"truncated of {name!r} is not true or false but {_kind(cut)}")
    return CutText(text) if cut else text


def _scores(scores: Any, name: str) -> tuple[float, ...]:
    if not isinstance(scores, list):
        raise ValueError(f"the scores of {name!r} are not a list but {_kind(scores)}")
    if not scores:
        raise ValueError(f"the scores of {name!r} are an empty list")
    for place, score in enumerate(scores):
        if type(score) not in (int, float):
            raise ValueError(f"score {place} of {name!r} is not a number but {_kind(score)}")
        if math.isnan(score):
            raise ValueError(f"score {place} of {name!r} is NaN")
    return tuple(map(float, scores))


def _kind(value: Any) -> str:
    """What a JSON value is called, and the value itself where it is short."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "", type(None): "null"}
    text = json.dumps(value, ensure_ascii=False)
    kind = kinds.get(type(value), "the number")
    return " ".join(part for part in (kind, text if len(text) < 40 and text != kind else "") if part)
