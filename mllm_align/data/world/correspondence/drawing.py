"""Draw a picture of things with Pillow; boxes from the pixels in sight; contours and numbers on top."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mllm_align.data.world.catalogue import COLOURS, SIZES
from mllm_align.data.world.correspondence.things import Frame, Placed, Thing
from mllm_align.data.world.render import SUPERSAMPLING, silhouette

BAR = (128, 128, 128)
DARK = (20, 20, 20)
CONTOUR = (255, 0, 255)
INNER = 0.6  # the pale part of a hollow thing, of its radius
# Digits of 3 x 5 pixels, row by row: they stay legible where a font's would not.
_DIGITS = {
    1: "010110010010111",
    2: "110001010100111",
    3: "110001010001110",
    4: "101101111001001",
    5: "111100110001110",
    6: "011100111101111",
    7: "111001010010010",
    8: "111101111101111",
}
Box = tuple[float, float, float, float]


def draw(frame: Frame, query: str = "", numbers: Mapping[str, int] | None = None) -> Image.Image:
    """The picture, RGB, `image_size` on a side.

    Args:
        frame: What is drawn.
        query: Name of the thing that is marked with a contour; none where "".
        numbers: From 1 to 8 by the names of things that get a thin contour and their number.
    """
    image = Image.new("RGB", (frame.image_size, frame.image_size), (frame.background,) * 3)
    cell = frame.image_size // frame.grid
    for each in frame.placed:
        corner = _corner(each, cell)
        image.paste(_sprite(each.thing.looks, frame.zoom, cell), corner, _cover(each.thing, frame.zoom, cell))
        if each.hidden_edge:
            image.paste(BAR, _bar(each, frame, cell))
    image = _lit(image, frame)
    for each in frame.placed:
        name = each.thing.name
        if name == query:
            _outline(image, each, frame, CONTOUR, max(1, cell // 16))
        elif numbers and name in numbers:
            _outline(image, each, frame, DARK, max(1, cell // 32))
    for each in frame.placed if numbers else ():
        if each.thing.name in numbers:  # type: ignore[operator]
            _number(image, numbers[each.thing.name], each, cell)  # type: ignore[index]
    return image


def boxes(frame: Frame) -> dict[str, Box]:
    """By name the box of each thing, normalised xyxy, tight around its pixels that are in sight."""
    found = {}
    for each in frame.placed:
        left, top, right, bottom = _bounds(_in_sight(each, frame))
        side = frame.image_size
        found[each.thing.name] = (left / side, top / side, right / side, bottom / side)
    return found


def _corner(each: Placed, cell: int) -> tuple[int, int]:
    return each.column * cell + each.dx, each.row * cell + each.dy


def _cover(thing: Thing, zoom: float, cell: int) -> Image.Image:
    return silhouette(thing.shape, SIZES[thing.size] * zoom, cell)


@lru_cache(maxsize=8192)
def _sprite(looks: tuple[str, ...], zoom: float, cell: int) -> Image.Image:
    """The colours of a thing in its cell, before they are cut out along its outline."""
    shape, name, size, texture, spot = looks
    side, colour = cell * SUPERSAMPLING, COLOURS[name]
    pale = tuple((3 * 255 + level) // 4 for level in colour)
    canvas = Image.new("RGB", (side, side), colour)
    pen, middle = ImageDraw.Draw(canvas), side / 2
    if texture == "striped":
        for top in range(0, side, side // 4):
            pen.rectangle((0, top, side, top + side // 8 - 1), fill=pale)
    elif texture == "hollow":
        inner = silhouette(shape, INNER * SIZES[size] * zoom, cell).resize((side, side))
        canvas.paste(pale, (0, 0), inner)
    if spot == "dot":
        radius = 0.13 * side
        pen.ellipse((middle - radius, middle - radius, middle + radius, middle + radius), fill=DARK)
    elif spot == "bar":
        pen.rectangle((middle - 0.06 * side, middle - 0.25 * side, middle + 0.06 * side, middle + 0.25 * side), DARK)
    return canvas.resize((cell, cell), Image.Resampling.BOX)


def _mask(each: Placed, frame: Frame) -> Image.Image:
    """The pixels that a thing covers by half or more, 255, hidden ones too."""
    cell = frame.image_size // frame.grid
    canvas = Image.new("L", (frame.image_size, frame.image_size))
    canvas.paste(_cover(each.thing, frame.zoom, cell), _corner(each, cell))
    return canvas.point([0] * 128 + [255] * 128)


def _in_sight(each: Placed, frame: Frame) -> Image.Image:
    mask = _mask(each, frame)
    if each.hidden_edge:
        mask.paste(0, _bar(each, frame, frame.image_size // frame.grid))
    return mask


def _bounds(mask: Image.Image) -> tuple[int, int, int, int]:
    found = mask.getbbox()
    assert found is not None, "a thing has pixels in sight"
    return found


def _bar(each: Placed, frame: Frame, cell: int) -> tuple[int, int, int, int]:
    """What hides a part of a thing: from the edge of its cell to some way into its box."""
    left, top, right, bottom = _bounds(_mask(each, frame))
    into = each.hidden_share
    wide, high = max(1, round(into * (right - left))), max(1, round(into * (bottom - top)))
    x, y = max(0, each.column * cell), max(0, each.row * cell)
    return {
        "left": (min(x, left), y, left + wide, y + cell),
        "right": (right - wide, y, max(x + cell, right), y + cell),
        "top": (x, min(y, top), x + cell, top + high),
        "bottom": (x, bottom - high, x + cell, max(y + cell, bottom)),
    }[each.hidden_edge]


def _lit(image: Image.Image, frame: Frame) -> Image.Image:
    if frame.light == 1 and not frame.noise:
        return image
    levels = np.asarray(image, dtype=np.float32) * frame.light
    levels += np.random.default_rng(frame.seed).normal(0, frame.noise, levels.shape).astype(np.float32)
    return Image.fromarray(levels.clip(0, 255).round().astype(np.uint8))


def _outline(image: Image.Image, each: Placed, frame: Frame, colour: tuple[int, int, int], width: int) -> None:
    """A contour around a thing's pixels that are in sight, `width` pixels wide."""
    mask = _in_sight(each, frame)
    wider = mask.filter(ImageFilter.MaxFilter(2 * width + 1))
    wider.paste(0, (0, 0), mask)
    image.paste(colour, (0, 0), wider)


def _number(image: Image.Image, number: int, each: Placed, cell: int) -> None:
    """A number on dark ground in the upper left corner of the cell."""
    scale = max(1, cell // 20)
    tag = Image.new("RGB", (5, 7), DARK)
    for place, bit in enumerate(_DIGITS[number]):
        if bit == "1":
            tag.putpixel((1 + place % 3, 1 + place // 3), (255, 255, 255))
    tag = tag.resize((5 * scale, 7 * scale), Image.Resampling.NEAREST)
    image.paste(tag, (each.column * cell, each.row * cell))
