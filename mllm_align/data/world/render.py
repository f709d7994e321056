"""Draw a scene with Pillow, and give the boxes and masks of its objects from the same sprites."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mllm_align.data.world.catalogue import COLOURS, SIGN, SIZES
from mllm_align.data.world.scenes import Item, Scene

SUPERSAMPLING = 8


def render(scene: Scene) -> Image.Image:
    """The picture, RGB, `image_size` on a side."""
    image = Image.new("RGB", (scene.image_size, scene.image_size), (scene.background,) * 3)
    cell = scene.image_size // scene.grid
    for item in scene.items:
        corner = _corner(item, cell)
        if item.shape == SIGN:
            image.paste(_sign(item.text, cell), corner)
        else:
            image.paste(COLOURS[item.colour], corner, silhouette(item.shape, SIZES[item.size], cell))
    return image


def boxes(scene: Scene) -> np.ndarray:
    """(N, 4) float64: the box of each item, normalised xyxy, tight around the pixels of its mask."""
    found = []
    for mask in masks(scene):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        found.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return np.asarray(found, dtype=np.float64).reshape(-1, 4) / scene.image_size


def masks(scene: Scene) -> np.ndarray:
    """(N, image_size, image_size) bool: the pixels that each item covers by half or more."""
    cell = scene.image_size // scene.grid
    result = np.zeros((len(scene.items), scene.image_size, scene.image_size), dtype=bool)
    for mask, item in zip(result, scene.items, strict=True):
        left, top = _corner(item, cell)
        if item.shape == SIGN:
            mask[top : top + cell, left : left + 2 * cell] = True
        else:
            canvas = Image.new("L", (scene.image_size, scene.image_size))
            canvas.paste(silhouette(item.shape, SIZES[item.size], cell), (left, top))
            mask[:] = np.asarray(canvas) >= 128
    return result


def _corner(item: Item, cell: int) -> tuple[int, int]:
    return item.column * cell + item.dx, item.row * cell + item.dy


@lru_cache(maxsize=512)
def silhouette(shape: str, radius: float, cell: int) -> Image.Image:
    """The coverage of a shape in its cell, 0 to 255; drawn large and averaged down. Its radius is in cells."""
    side = cell * SUPERSAMPLING
    canvas = Image.new("L", (side, side))
    _DRAWERS[shape](ImageDraw.Draw(canvas), side / 2, radius * side)
    return canvas.resize((cell, cell), Image.Resampling.BOX)


@lru_cache(maxsize=64)
def _sign(text: str, cell: int) -> Image.Image:
    sign = Image.new("RGB", (2 * cell, cell), "white")
    draw = ImageDraw.Draw(sign)
    draw.rectangle((0, 0, 2 * cell - 1, cell - 1), outline="black")
    font = ImageFont.load_default(cell * 0.62)
    draw.text((cell, cell / 2), text.upper(), fill="black", font=font, anchor="mm")
    return sign


def _polygon(draw: ImageDraw.ImageDraw, middle: float, radii: tuple[float, ...], turn: float = -90.0) -> None:
    step = 2 * math.pi / len(radii)
    angles = [math.radians(turn) + step * index for index in range(len(radii))]
    points = [(middle + r * math.cos(a), middle + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
    draw.polygon(points, fill=255)


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: int = 255) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _circle(draw: ImageDraw.ImageDraw, m: float, r: float) -> None:
    _disc(draw, m, m, r)


def _square(draw: ImageDraw.ImageDraw, m: float, r: float) -> None:
    half = 0.9 * r
    draw.rectangle((m - half, m - half, m + half, m + half), fill=255)


def _cross(draw: ImageDraw.ImageDraw, m: float, r: float) -> None:
    arm = 0.32 * r
    draw.rectangle((m - r, m - arm, m + r, m + arm), fill=255)
    draw.rectangle((m - arm, m - r, m + arm, m + r), fill=255)


def _ring(draw: ImageDraw.ImageDraw, m: float, r: float) -> None:
    _disc(draw, m, m, r)
    _disc(draw, m, m, 0.55 * r, fill=0)


def _moon(draw: ImageDraw.ImageDraw, m: float, r: float) -> None:
    _disc(draw, m, m, r)
    _disc(draw, m + 0.5 * r, m, 0.8 * r, fill=0)


def _heart(draw: ImageDraw.ImageDraw, m: float, r: float) -> None:
    for x in (m - 0.45 * r, m + 0.45 * r):
        _disc(draw, x, m - 0.35 * r, 0.55 * r)
    draw.polygon([(m - 0.97 * r, m - 0.1 * r), (m + 0.97 * r, m - 0.1 * r), (m, m + r)], fill=255)


_DRAWERS = {
    "circle": _circle,
    "square": _square,
    "triangle": lambda draw, m, r: _polygon(draw, m, (r, r, r)),
    "star": lambda draw, m, r: _polygon(draw, m, (r, 0.42 * r) * 5),
    "cross": _cross,
    "ring": _ring,
    "diamond": lambda draw, m, r: _polygon(draw, m, (r, 0.7 * r, r, 0.7 * r)),
    "hexagon": lambda draw, m, r: _polygon(draw, m, (r,) * 6),
    "moon": _moon,
    "heart": _heart,
}
