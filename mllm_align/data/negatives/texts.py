"""Which texts of a row are edited, and where what was made of them goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from mllm_align.data.corrupt.drawn import seed_of
from mllm_align.data.errors import DataError
from mllm_align.data.mine.problems import RowProblem
from mllm_align.data.negatives.known import Known
from mllm_align.data.negatives.making import Kept
from mllm_align.data.objects import ImageObject
from mllm_align.data.schema import UNREADABLE, parse_row, row_name

OBJECTS = "objects"
AUTO = "auto"
WHOLE = (0.0, 0.0, 1.0, 1.0)  # the box of a picture


@dataclass(frozen=True)
class Texts:
    """The texts of one row.

    Attributes:
        id: The row's own, or None.
        key: What draws depend on.
        name: How errors speak of the row.
        texts: Those that are edited.
        places: Of each the place of its object among the row's; None for a text of the whole picture.
        objects: Of the row.
    """

    id: str | None
    key: str
    name: str
    texts: tuple[str, ...]
    places: tuple[int | None, ...]
    objects: tuple[ImageObject, ...]

    def rng(self, seed: int, place: int, what: str) -> Random:
        """Draws for one text, which depend on the seed, the row and the text's place alone."""
        return Random(seed_of(seed, self.key, place, what))

    def known(self, place: int, classes: Sequence[str] = ()) -> Known:
        """What is known of the picture that a text is about."""
        where = self.places[place]
        image = 0 if where is None else self.objects[where].image
        return Known((each for each in self.objects if each.image == image), classes)


def read_texts(raw: Mapping[str, Any], number: int, column: str) -> Texts:
    """The texts of a row; its pictures are not read.

    Args:
        raw: A canonical row.
        number: Its place.
        column: Which texts: "objects" for those of its objects, a column's name for a text of its one picture, "auto"
            for the objects' where there are any, else `chosen`.

    Raises:
        RowProblem: If it is no row, has no picture, or none of these texts.
    """
    where = row_name(raw, number)
    try:
        row = parse_row(raw, number)
    except DataError as error:
        raise RowProblem("invalid row", str(error)) from None
    if not row.images or all(raw.get(name) is None for name in ("image", "images")):
        raise RowProblem("missing image", f"{where}: no picture in column 'image'; what is false is so of a picture")
    objects = tuple(row.objects.get("image", ()))
    named = [place for place, each in enumerate(objects) if each.text.strip()]
    key = row.id if row.id is not None else f"row-{number}"
    if column == OBJECTS or (column == AUTO and named):
        if not named:
            raise RowProblem("missing text", f"{where}: none of its {len(objects)} objects has a text")
        return Texts(row.id, key, where, tuple(objects[each].text for each in named), tuple(named), objects)
    text = row.responses.get("chosen") if column in (AUTO, "chosen") else raw.get(column)
    if not isinstance(text, str) or not text.strip():
        name = "chosen" if column == AUTO else column
        raise RowProblem("missing text", f"{where}: no text in column {name!r}")
    if len(row.images) != 1:
        raise RowProblem("several images", f"{where}: {len(row.images)} images; a text of a whole picture needs one")
    return Texts(row.id, key, where, (text.strip(),), (None,), objects)


def with_negatives(
    raw: Mapping[str, Any], item: Texts, kept: Sequence[Sequence[Kept]], positives: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """The row, its objects with their negatives and paraphrases; a text of the whole picture as one more object, that
    covers it.

    Beside them, in columns, of each object: what made each of its negatives ("" for those it had), and whether the
    objects of the row say that it is false.
    """
    given = {name: value for name, value in raw.items() if value is not None and name != UNREADABLE}
    objects = [{key: value for key, value in each.items() if value is not None} for each in given.get("objects") or ()]
    whole = item.places == (None,)
    if whole:
        objects.append({"box": list(WHOLE), "text": item.texts[0]})
    by: list[list[str]] = [[""] * len(each.get("negatives") or ()) for each in objects]
    checked: list[list[bool]] = [[False] * len(each.get("negatives") or ()) for each in objects]
    for number, edits in enumerate(kept):
        where = item.places[number]
        place = len(objects) - 1 if where is None else where
        new = {"negatives": [each.text for each in edits], "positives": positives[number]}
        objects[place] |= {key: [*(objects[place].get(key) or ()), *texts] for key, texts in new.items()}
        by[place] += [each.kind for each in edits]
        checked[place] += [each.checked for each in edits]
    listed = ("negatives", "positives")
    objects = [{key: value for key, value in each.items() if key not in listed or value} for each in objects]
    return {**given, "objects": objects, "negatives_by": by, "negatives_checked": checked}
