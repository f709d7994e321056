"""Texts that are near a picture and false of it, and pictures near a text: mined among the rows' own.

    rows -> captioned (distinct pictures and texts, vectors) -> index -> negative_choice -> rows with `negatives`

What is true of a picture is not mined for it: its own texts, those of every row that shows the same picture (by its
content) or one that an encoder takes for the same, and equal strings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mllm_align.data.errors import DataError
from mllm_align.data.loading import undecoded
from mllm_align.data.mine.captioned import (
    TEXT_COLUMNS,
    Embedder,
    embedded_pictures,
    embedded_texts,
    given_pictures,
    given_texts,
    read_captions,
    texts_in,
)
from mllm_align.data.mine.negative_choice import NegativeChoice
from mllm_align.data.mine.negative_rows import with_contrast, with_negatives
from mllm_align.data.mine.negative_search import Found, Mining, Sides
from mllm_align.data.mine.pairs import input_digest
from mllm_align.data.mine.problems import RowProblem
from mllm_align.data.mine.results import Tally, write_results
from mllm_align.data.output import RowFile
from mllm_align.data.schema import missing_column


@dataclass(frozen=True, kw_only=True)
class MiningOptions:
    """What is mined.

    Attributes:
        choice: Which candidates are negatives.
        column: The texts: a column of strings or lists of them; "auto" for the first that rows have of
            `caption`, `captions` and `chosen`.
        images: The column of the pictures.
        same_picture: Cosine from which two pictures are taken for the same one; None for never.
        max_words: Of a text that is mined, told apart by blanks; None for any number. What a row says itself may have
            more.
        contrast: Whether rows also get the picture nearest to their first text that it is false of, as
            `contrast_image`.
        index: Kind of FAISS index.
    """

    choice: NegativeChoice = field(default_factory=NegativeChoice)
    column: str = "auto"
    images: str = "image"
    same_picture: float | None = 0.99
    max_words: int | None = None
    contrast: bool = False
    index: str = "auto"

    def __post_init__(self) -> None:
        """Refuses texts without a word."""
        if self.max_words is not None and self.max_words < 1:
            raise ValueError(f"max_words must be at least 1, not {self.max_words}")


class GivenVectors(NamedTuple):
    """Vectors that somebody else has made.

    Attributes:
        images: (rows, d), one per row.
        texts: (texts, d), one per text of each row, in order.
        name: How they are called.
    """

    images: np.ndarray
    texts: np.ndarray
    name: str


def mine_negatives(
    rows: Any,
    output: str | os.PathLike[str],
    encoder: Embedder | GivenVectors,
    options: MiningOptions | None = None,
    *,
    strict: bool = False,
    overwrite: bool = False,
    block_size: int = 1024,
    progress: bool = True,
    made_of: str = "",
) -> dict[str, Any]:
    """Writes the rows with `negatives`, and `<output>.report.json`. A collective: every process must call it.

    Rows keep all their columns and get `negatives`, a list of texts behind those that they had, which may be empty;
    `negatives_scores`, the cosine of each with the picture (None for those they had), and `negatives_by`, what mined
    each. Killed and started again, it goes on, and ends with the very same file.

    Args:
        rows: With a picture and a text; anything with a length and integer indexing.
        output: The file, .jsonl or .parquet.
        encoder: What embeds both sides; or vectors of both.
        options: What is mined.
        strict: Whether a row that cannot be used is an error.
        overwrite: Whether an output file with another content may be replaced.
        block_size: Queries of a block: what a kill costs at the most.
        progress: Whether to show bars.
        made_of: What the rows are called, for messages.

    Returns:
        The report: rows in, kept, dropped by problem; distinct pictures and texts, texts that are too long, new
        negatives, rows without any negative, candidates dropped by each filter, of each direction.

    Raises:
        DataError: If `strict`, for the first row that cannot be used; for columns or vectors that are not there; if
            every text is too long.
        FileExistsError: If the output is there with another content and may not be replaced.
        ValueError: If the work folder holds a job on other rows or with other settings.
    """
    options = options or MiningOptions()
    rows = undecoded(rows)
    file = RowFile(output, overwrite=overwrite)
    file.refuse_other()
    column = text_column(rows, options.column)
    bars = {"progress": progress, "made_of": made_of}
    sides = _sides(rows, encoder, file.work_folder, column, options, strict, bars)
    mining = Mining(
        sides,
        options.choice,
        file.work_folder,
        same_picture=options.same_picture,
        max_words=options.max_words,
        index=options.index,
        digest=input_digest(rows),
        block_size=block_size,
        **bars,
    )
    negatives = mining.texts()
    contrasts = mining.pictures() if options.contrast else None
    tally = Tally(strict)
    kept = list(_kept(rows, sides, negatives, contrasts, tally, encoder.name, options.images))
    report = {
        "rows": len(rows),
        "kept": len(kept),
        "problems": tally.problems.as_dict(),
        "filters": {},
        "pictures": len(sides.pictures.vectors),
        "texts": len(sides.captions.texts),
        "long_texts": 0 if mining.among is None else len(sides.captions.texts) - len(mining.among),
        "negatives": sum(row.mined for row in kept),
        "without": sum(not row.columns["negatives"] for row in kept),
        "dropped": negatives.dropped,
        "contrasts": None if contrasts is None else sum(row.shown for row in kept),
        "dropped_contrasts": None if contrasts is None else contrasts.dropped,
        "range_max": negatives.reach,
        "column": column,
        "encoder": getattr(encoder, "identity", encoder.name),
        "options": asdict(options),
    }
    write_results(file, [row.columns for row in kept], report)
    return report


def text_column(rows: Any, column: str) -> str:
    """The column of the texts: what is named, or of "auto" the first of `TEXT_COLUMNS` that is there.

    Raises:
        DataError: If it is not there.
    """
    names = list(rows[0]) if len(rows) else list(TEXT_COLUMNS)
    if column == "auto":
        found = [name for name in TEXT_COLUMNS if name in names]
        if not found:
            raise missing_column(TEXT_COLUMNS[0], names, "the rows")
        return found[0]
    if column not in names:
        raise missing_column(column, names, "the rows")
    return column


def _sides(
    rows: Any,
    encoder: Embedder | GivenVectors,
    folder: Path,
    column: str,
    options: MiningOptions,
    strict: bool,
    bars: dict[str, Any],
) -> Sides:
    if not isinstance(encoder, GivenVectors):
        pictures = embedded_pictures(rows, encoder, folder / "embeddings", options.images, strict=strict, **bars)
        captions = read_captions(rows, column, pictures)
        texts = embedded_texts(captions.texts, encoder, folder / "texts", progress=bars["progress"])
        return Sides(pictures, captions, texts)
    if encoder.images.shape[1] != encoder.texts.shape[1]:
        raise DataError(
            f"image vectors are {encoder.images.shape[1]} long and text vectors {encoder.texts.shape[1]}: they must "
            "be of one model"
        )
    pictures = given_pictures(rows, encoder.images, options.images)
    captions = read_captions(rows, column, pictures)
    return Sides(pictures, captions, given_texts(captions, encoder.texts))


class _Kept(NamedTuple):
    """A row that is written, how many of its negatives are new, and whether its contrast image is."""

    columns: dict[str, Any]
    mined: int
    shown: bool


def _kept(
    rows: Any, sides: Sides, negatives: Found, contrasts: Found | None, tally: Tally, by: str, images: str
) -> Iterator[_Kept]:
    pictures, captions = sides.pictures, sides.captions
    first: dict[int, int] = {}
    for number, picture in enumerate(pictures.of_row.tolist()):
        first.setdefault(picture, number)
    for number in range(len(rows)):
        problem = pictures.problems.get(number) or captions.problems.get(number)
        if problem is None and pictures.of_row[number] < 0:  # an earlier row with the same file could not be used
            problem = str(RowProblem("unusable image", f"row {number}: its image is one that could not be read"))
        if problem is not None:
            tally.problem(problem)
            continue
        found, scores = negatives.negatives[int(pictures.of_row[number])]
        try:
            given = rows[number]
            row = with_negatives(given, number, [captions.texts[each] for each in found], scores, by)
            if contrasts is not None:
                (other, score) = contrasts.negatives[captions.of_row[number][0]]
                shown = [rows[first[each]].get(images) for each in other]
                row = with_contrast(row, shown, score, by)
        except RowProblem as problem:
            tally.problem(str(problem))
            continue
        new = len(row["negatives"]) - len(texts_in(given.get("negatives")) or ())
        yield _Kept(row, new, given.get("contrast_image") is None and row.get("contrast_image") is not None)
