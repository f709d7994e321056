"""Where the tokens of an image lie on it: grids, each over a part of the upright original."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

WHOLE = (0.0, 0.0, 1.0, 1.0)


class Grid(NamedTuple):
    """A grid of tokens, equally large cells row by row.

    Attributes:
        rows: Of cells.
        columns: Of cells.
        area: Left, top, right and bottom of what it covers, in widths and heights of the upright original; beyond 0 or
            1 where the processor pads.
        start: Number of its first token among those of the image.
        row_step: Tokens from one row to the next: more than `columns` where a newline ends each.
    """

    rows: int
    columns: int
    area: tuple[float, float, float, float]
    start: int
    row_step: int

    @property
    def stop(self) -> int:
        """One behind its last cell's token."""
        return self.start + (self.rows - 1) * self.row_step + self.columns


def grid(
    rows: int,
    columns: int,
    area: tuple[float, float, float, float] = WHOLE,
    start: int = 0,
    *,
    newlines: bool = False,
) -> Grid:
    """A grid whose tokens follow each other, but for a newline after each row."""
    return Grid(rows, columns, area, start, columns + newlines)


def tiles(
    num_rows: int, num_columns: int, cells: tuple[int, int], start: int = 0, size: tuple[float, float] | None = None
) -> Iterator[Grid]:
    """The grids of tiles that are cut out of the whole image row by row, one tile's tokens behind the other's.

    Args:
        num_rows: Of tiles.
        num_columns: Of tiles.
        cells: Rows and columns of tokens in each.
        start: Number of the first tile's first token.
        size: Width and height of a tile as shares of the image's, where the last ones are cut short; an equal share by
            default.
    """
    width, height = size or (1 / num_columns, 1 / num_rows)
    for number in range(num_rows * num_columns):
        row, column = divmod(number, num_columns)
        area = (column * width, row * height, min((column + 1) * width, 1.0), min((row + 1) * height, 1.0))
        yield grid(*cells, area, start + number * cells[0] * cells[1])


def side(size: Any, name: str) -> Any:
    """A side that an image processor's `size` names, or None: it is a dict, or an object with attributes."""
    return size.get(name) if isinstance(size, dict) else getattr(size, name, None)


def pair(value: Any) -> tuple[int, int]:
    """Height and width of what configs give as one number or as two."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])
