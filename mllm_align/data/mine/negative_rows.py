"""Rows with what was mined for them; nothing that they hold is replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mllm_align.data.mine.captioned import texts_in
from mllm_align.data.mine.problems import RowProblem
from mllm_align.data.schema import UNREADABLE, row_name


def with_negatives(
    raw: Mapping[str, Any], number: int, negatives: Sequence[str], scores: Sequence[float], by: str
) -> dict[str, Any]:
    """The row, `negatives` behind those that it had, of which no string comes twice.

    Raises:
        RowProblem: If its own column `negatives`, or what tells of it, is none that goes with them.
    """
    given = {name: value for name, value in raw.items() if name != UNREADABLE}
    had = texts_in(given.get("negatives"))
    where = row_name(raw, number)
    if had is None:
        raise RowProblem("other negatives", f"{where}: column 'negatives' holds no list of texts: rename it")
    told = [_told(given.get(name), len(had), name, where) for name in ("negatives_scores", "negatives_by")]
    new = [(text, score) for text, score in zip(negatives, scores, strict=True) if text not in had]
    return {
        **given,
        "negatives": [*had, *(text for text, _ in new)],
        "negatives_scores": [*(told[0] or [None] * len(had)), *(score for _, score in new)],
        "negatives_by": [*(told[1] or [""] * len(had)), *([by] * len(new))],
    }


def with_contrast(row: dict[str, Any], images: Sequence[Any], scores: Sequence[float], by: str) -> dict[str, Any]:
    """The row with the picture as its `contrast_image`, unless it has one or there is none."""
    new = {"contrast_image": None, "contrast_image_score": None, "contrast_image_by": None}
    if row.get("contrast_image") is not None:
        return new | row
    if images:
        value = images[0][0] if isinstance(images[0], list | tuple) else images[0]
        new = {"contrast_image": value, "contrast_image_score": scores[0], "contrast_image_by": by}
    return row | new


def _told(value: Any, count: int, name: str, where: str) -> list[Any]:
    """What a column tells of each of the negatives that a row had; nothing where it is not there."""
    if value is None:
        return []
    if not isinstance(value, list | tuple) or len(value) != count or any(isinstance(v, list | tuple) for v in value):
        raise RowProblem(
            "other negatives", f"{where}: column {name!r} tells not of each of its {count} negatives: rename it"
        )
    return list(value)
