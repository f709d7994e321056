"""What stands on a page: forms, tables and invoices, on paper of the shipped base's size, or larger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from mllm_align.data.world.catalogue import COLOURS, NUMBER_WORDS, SIDES, SIGN_WORDS, SIZES

KINDS = ("form", "table", "invoice")
Rows = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Paper:
    """How large a page is. Words are legible to a tower that is shown it at this size, not at half of it.

    Attributes:
        name: "small", in the words of the shipped base, or "large".
        image_size: Side in pixels.
        font_size: In pixels.
        num_lines: Lines that it has room for.
    """

    name: str
    image_size: int
    font_size: int
    num_lines: int


PAPERS: Mapping[str, Paper] = {"small": Paper("small", 64, 9, 4), "large": Paper("large", 448, 20, 12)}


@dataclass(frozen=True)
class Sheet:
    """What is written on a page.

    Attributes:
        kind: form, table or invoice.
        paper: What it is written on.
        title: The first line; none where "".
        header: Names of the columns; empty where they have none.
        rows: The lines of cells; the first cell names the line.
        total: The last line of an invoice: its name and the sum.
    """

    kind: str
    paper: Paper
    title: str
    header: tuple[str, ...]
    rows: Rows
    total: tuple[str, ...] = ()

    @property
    def lines(self) -> list[tuple[str, ...]]:
        """The cells of every line from the top."""
        return [line for line in ((self.title,) if self.title else (), self.header, *self.rows, self.total) if line]

    @property
    def content(self) -> list[Any]:
        """All that it says: splits are disjoint in this."""
        return [self.kind, self.paper.name, self.lines]

    def with_cell(self, row: int, column: int, text: str) -> Sheet:
        """The sheet with another text in one cell; an invoice's total is its sum again."""
        changed = [list(cells) for cells in self.rows]
        changed[row][column] = text
        rows = tuple(map(tuple, changed))
        total = (self.total[0], _sum(rows, self.paper)) if self.total else ()
        return Sheet(self.kind, self.paper, self.title, self.header, rows, total)


class Look(NamedTuple):
    """How a page is shown: moved by some pixels, on paper of a grey level."""

    dx: int = 0
    dy: int = 0
    paper_level: int = 255


def draw_sheet(kind: str, paper: Paper, rng: Random) -> tuple[Sheet, tuple[tuple[str, ...], ...]]:
    """A sheet, and per column (of a form: per row) the values that its cells may have instead."""
    return (_SMALL if paper.name == "small" else _LARGE)[kind](paper, rng)


_COUNTS = NUMBER_WORDS[1:]
_FEW = NUMBER_WORDS[1:5]  # two of them add up to a number that has a word
_SMALL_GOODS = (*SIGN_WORDS, "star", "cross", "ring", "moon", "heart", "square", "circle")
_FIELDS = {
    "colour": tuple(COLOURS)[:6],
    "size": tuple(SIZES),
    "side": SIDES,
    "count": _COUNTS,
    "sign": SIGN_WORDS,
}
_NAMES = ("Adams", "Baker", "Clark", "Davis", "Evans", "Foster", "Gray", "Hughes", "Irwin", "Jones", "Keller", "Lopez")
_CITIES = (
    "Athens",
    "Bergen",
    "Cairo",
    "Dublin",
    "Geneva",
    "Hanoi",
    "Lima",
    "Oslo",
    "Porto",
    "Quito",
    "Turin",
    "Zagreb",
)
_GOODS = ("Lamp", "Chair", "Table", "Shelf", "Clock", "Mirror", "Carpet", "Vase", "Desk", "Sofa", "Stool", "Frame")
_MONTHS = ("January", "March", "April", "May", "June", "July", "August", "October", "November")
_DATES = tuple(f"{day} {month} 2024" for day in range(1, 29) for month in _MONTHS)
_CODES = tuple(f"{letter}-{number}" for letter in "ABCDEF" for number in range(1001, 9999, 97))
_QUANTITIES = tuple(str(number) for number in range(1, 10))
_PRICES = tuple(f"{number}.50" for number in range(2, 90))
_ENTRIES = {
    "Name": _NAMES,
    "City": _CITIES,
    "Date": _DATES,
    "Number": _CODES,
    "Quantity": _QUANTITIES,
    "Price": _PRICES,
    "Article": _GOODS,
}


def _small_form(paper: Paper, rng: Random) -> tuple[Sheet, Rows]:
    names = rng.sample(tuple(_FIELDS), paper.num_lines)
    rows = tuple((name, rng.choice(_FIELDS[name])) for name in names)
    return Sheet("form", paper, "", (), rows), tuple(_FIELDS[name] for name in names)


def _small_table(paper: Paper, rng: Random) -> tuple[Sheet, Rows]:
    rows = tuple((name, rng.choice(_FIELDS["colour"])) for name in rng.sample(SIGN_WORDS, paper.num_lines - 1))
    return Sheet("table", paper, "", ("sign", "colour"), rows), ((), _FIELDS["colour"])


def _small_invoice(paper: Paper, rng: Random) -> tuple[Sheet, Rows]:
    title, *goods = rng.sample(_SMALL_GOODS, 3)
    rows = tuple((name, rng.choice(_FEW)) for name in goods)
    return Sheet("invoice", paper, title, (), rows, ("count", _sum(rows, paper))), ((), _FEW)


def _large_form(paper: Paper, rng: Random) -> tuple[Sheet, Rows]:
    names = rng.sample(tuple(_ENTRIES), 5)
    rows = tuple((name, rng.choice(_ENTRIES[name])) for name in names)
    return Sheet("form", paper, "Order form", (), rows), tuple(_ENTRIES[name] for name in names)


def _large_table(paper: Paper, rng: Random) -> tuple[Sheet, Rows]:
    columns = (_GOODS, _CODES, _CITIES)
    rows = tuple((name, rng.choice(_CODES), rng.choice(_CITIES)) for name in rng.sample(_GOODS, 7))
    return Sheet("table", paper, "Stock list", ("Article", "Number", "City"), rows), columns


def _large_invoice(paper: Paper, rng: Random) -> tuple[Sheet, Rows]:
    columns = (_GOODS, _QUANTITIES, _PRICES)
    rows = tuple((name, rng.choice(_QUANTITIES), rng.choice(_PRICES)) for name in rng.sample(_GOODS, 5))
    header = ("Article", "Quantity", "Price")
    return Sheet("invoice", paper, "Invoice", header, rows, ("Total", _sum(rows, paper))), columns


def _sum(rows: Rows, paper: Paper) -> str:
    if paper.name == "small":
        return NUMBER_WORDS[sum(NUMBER_WORDS.index(row[1]) for row in rows)]
    return f"{sum(int(row[1]) * float(row[2]) for row in rows):.2f}"


_Maker = Callable[[Paper, Random], tuple[Sheet, Rows]]
_SMALL: Mapping[str, _Maker] = {"form": _small_form, "table": _small_table, "invoice": _small_invoice}
_LARGE: Mapping[str, _Maker] = {"form": _large_form, "table": _large_table, "invoice": _large_invoice}
