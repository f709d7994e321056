"""Draw a sheet in Pillow's own font, and give every word with its box."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from mllm_align.data.world.documents.sheets import Look, Sheet

INK, RULE = (0, 0, 0), (150, 150, 150)
PLAIN = Look()


class Word(NamedTuple):
    """One word: its text, its line and cell from the top left and place in the cell, and where its ink lies.

    `box` is normalised xyxy; `anchor` is where it is written, in pixels: left, and the middle of the line.
    """

    text: str
    line: int
    cell: int
    place: int
    box: tuple[float, float, float, float]
    anchor: tuple[float, float]


def draw(sheet: Sheet, look: Look = PLAIN) -> Image.Image:
    """The page, RGB."""
    side = sheet.paper.image_size
    image = Image.new("RGB", (side, side), (look.paper_level,) * 3)
    pen, font = ImageDraw.Draw(image), _font(sheet.paper.font_size)
    step = side / sheet.paper.num_lines
    ruled = [number for number, line in enumerate(sheet.lines) if line in (sheet.header, sheet.total) and line]
    for number in ruled:
        # Below a header, above a total.
        height = round((number + (sheet.lines[number] == sheet.header)) * step) + look.dy - 1
        pen.line((look.dx, height, side - 1 + look.dx, height), fill=RULE)
    for word in words(sheet, look):
        pen.text(word.anchor, word.text, fill=INK, font=font, anchor="lm")
    return image


def words(sheet: Sheet, look: Look = PLAIN) -> list[Word]:
    """Every word in reading order."""
    side, font = sheet.paper.image_size, _font(sheet.paper.font_size)
    step, margin = side / sheet.paper.num_lines, max(1, side // 32)
    columns = max(map(len, sheet.lines))
    found = []
    for line, cells in enumerate(sheet.lines):
        middle = round((line + 0.5) * step) + look.dy
        for cell, text in enumerate(cells):
            left = _left(text, cell, len(cells), columns, side, margin, font) + look.dx
            for place, word in enumerate(text.split()):
                edges = zip(_ink(word, sheet.paper.font_size), (left, middle, left, middle), strict=True)
                box = tuple(min(max((edge + start) / side, 0.0), 1.0) for edge, start in edges)
                found.append(Word(word, line, cell, place, (box[0], box[1], box[2], box[3]), (left, middle)))
                left += round(font.getlength(word + " "))
    return found


def _left(text: str, cell: int, cells: int, columns: int, side: int, margin: int, font: Any) -> int:
    """Where a cell's text begins: a title in the middle, the first cell on the left, the last one up to the right."""
    length = round(font.getlength(text))
    if cells == 1:
        return (side - length) // 2
    if cell == 0:
        return margin
    if cell == cells - 1:
        return side - margin - length
    return round(side * cell / columns) + margin


@lru_cache(maxsize=8192)
def _ink(word: str, size: int) -> tuple[int, int, int, int]:
    """The box of a word's pixels around where it is written; a font's own is wider."""
    font = _font(size)
    pad = 2 * size
    canvas = Image.new("L", (round(font.getlength(word)) + 2 * pad, 2 * pad))
    ImageDraw.Draw(canvas).text((pad, pad), word, fill=255, font=font, anchor="lm")
    left, top, right, bottom = canvas.getbbox() or (pad, pad, pad, pad)
    return left - pad, top - pad, right - pad, bottom - pad


@lru_cache(maxsize=8)
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
