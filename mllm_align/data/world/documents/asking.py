"""Two pages that differ in one cell, and the question whose answer stands there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from mllm_align.data.world.documents.sheets import KINDS, PAPERS, Look, Sheet, draw_sheet
from mllm_align.data.world.partition import check_part, part_of
from mllm_align.data.world.splits import generator

# In the words of the shipped base; the last one of each is held out of training.
FIELD = ("What is the {0}?", "Tell me the {0}.", "Which {0} is it?")
MOST_TRIES = 20_000
CELL = ("What is the {0} of {1}?", "Tell me the {0} of {1}.", "Which {0} does {1} have?")


@dataclass(frozen=True)
class DocumentPair:
    """Two sheets with one question and two answers.

    Attributes:
        id: Split, paper, seed and number.
        sheets: They differ in one cell, and in what follows from it.
        looks: How each is shown.
        text: The question.
        answers: What stands on each.
        kind: form, table or invoice.
        split: train, validation or test.
    """

    id: str
    sheets: tuple[Sheet, Sheet]
    looks: tuple[Look, Look]
    text: str
    answers: tuple[str, str]
    kind: str
    split: str


def iter_documents(
    split: str = "train",
    seed: int = 0,
    paper: str = "small",
    kinds: Sequence[str] = KINDS,
    paraphrases: str = "seen",
) -> Iterator[DocumentPair]:
    """Pairs of pages of a split, the kinds in turn, none twice; no page is, in content, in two splits.

    Args:
        split: train, validation or test.
        seed: Another seed, another sequence.
        paper: A name of `PAPERS`.
        kinds: Which kinds of page.
        paraphrases: `seen` in training, or `held_out`.

    Raises:
        ValueError: If a name is unknown, or the paper has no further pair: the small one has some thousands.
    """
    check_part(split)
    if paper not in PAPERS:
        raise ValueError(f"unknown paper {paper!r}; there are {', '.join(PAPERS)}")
    if not kinds or set(kinds) - set(KINDS):
        raise ValueError(
            f"pages are {', '.join(KINDS)}, not {', '.join(sorted(set(kinds) - set(KINDS))) or 'nothing'}"
        )
    if paraphrases not in ("seen", "held_out"):
        raise ValueError(f"unknown set of paraphrases {paraphrases!r}; there are seen, held_out")
    rng = generator("documents", split, paper, seed, tuple(kinds))
    seen: set[str] = set()
    number = tries = 0
    while True:
        kind = kinds[number % len(kinds)]
        first, other, asked = _pair(kind, paper, rng)
        key = repr((sorted(repr(sheet.content) for sheet in (first, other)), asked))
        if key in seen or any(part_of(sheet.content) != split for sheet in (first, other)):
            tries += 1
            if tries > MOST_TRIES:
                raise ValueError(f"{number} pairs of {split} are all that {paper} paper has: ask for fewer")
            continue
        seen.add(key)
        tries = 0
        sheets = (first, other) if rng.random() < 0.5 else (other, first)
        templates = FIELD if len(asked) == 1 else CELL
        template = rng.choice(templates[:-1] if paraphrases == "seen" else templates[-1:])
        yield DocumentPair(
            id=f"{split}/{paper}/{seed}/{number}",
            sheets=sheets,
            looks=(_look(rng, paper), _look(rng, paper)),
            text=template.format(*asked),
            answers=(_answer(sheets[0], asked), _answer(sheets[1], asked)),
            kind=kind,
            split=split,
        )
        number += 1


def _pair(kind: str, paper: str, rng: Random) -> tuple[Sheet, Sheet, tuple[str, ...]]:
    """A sheet, the same with another value in one cell, and what is asked: a field, or a column and a row."""
    sheet, values = draw_sheet(kind, PAPERS[paper], rng)
    row, column = rng.randrange(len(sheet.rows)), rng.randrange(1, len(sheet.rows[0]))
    options = values[row] if kind == "form" else values[column]
    now = sheet.rows[row][column]
    other = sheet.with_cell(row, column, rng.choice([value for value in options if value != now]))
    if kind == "form":
        return sheet, other, (sheet.rows[row][0],)
    if kind == "invoice" and rng.random() < 0.3:
        return sheet, other, (sheet.total[0],)
    name = sheet.header[column] if sheet.header else sheet.total[0]
    return sheet, other, (name, sheet.rows[row][0])


def _answer(sheet: Sheet, asked: tuple[str, ...]) -> str:
    if len(asked) == 1:
        return next(cells[1] for cells in (*sheet.rows, sheet.total) if cells and cells[0] == asked[0])
    column = sheet.header.index(asked[0]) if sheet.header else 1
    return next(cells[column] for cells in sheet.rows if cells[0] == asked[1])


def _look(rng: Random, paper: str) -> Look:
    by = PAPERS[paper].image_size // 64
    return Look(rng.randint(-by, by), rng.randint(-by, by), rng.randint(225, 255))
