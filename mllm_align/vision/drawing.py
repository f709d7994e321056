"""Regions for the eye: boxes and names on an image, and how much of each token's cell each region covers."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mllm_align.families.grids import Grid
from mllm_align.vision.regions import Located

Area = tuple[float, float, float, float]
SIDE, GAP, HEAD = 384, 8, 22
FAINT, STRONGEST = 0.45, 0.75


def draw_regions(
    image: Image.Image, objects: Sequence[Located], names: Sequence[str], grids: Sequence[Grid], weights: Tensor
) -> Image.Image:
    """Panels side by side: the image with its regions, and one per layer of grids with the weights of the tokens.

    What no token is shown is pale; where the processor pads, the panel is wider than the image. A region has the same
    colour everywhere, and is the stronger the more of a cell it covers.

    Args:
        image: Upright.
        objects: Where each region is.
        names: What is written at each.
        grids: Of the image (`Family.token_grids`); those that lie over each other come into panels of their own.
        weights: (R, T) as of `RegionWeights`.
    """
    hues = [_colour(number, len(objects)) for number in range(len(objects))]
    scale = max(1, round(SIDE / max(image.size))) if max(image.size) <= SIDE else SIDE / max(image.size)
    size = round(image.width * scale), round(image.height * scale)
    shown = image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)
    panels = [("regions", _boxes(shown, objects, names, hues))]
    for layer in layers(grids):
        counts = ", ".join(dict.fromkeys(f"{each.rows} x {each.columns}" for each in layer))
        panels.append((f"{len(layer)} grid(s) of {counts} tokens", _heat(shown, layer, weights, hues)))
    return _side_by_side(panels)


def stack(parts: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Titled pictures, one below the other."""
    width = max(part.width for _, part in parts)
    whole = Image.new("RGB", (width, sum(part.height + HEAD for _, part in parts)), "white")
    top = 0
    for title, part in parts:
        ImageDraw.Draw(whole).text((GAP, top + 3), title, fill="black", font=ImageFont.load_default(14))
        whole.paste(part, (0, top + HEAD))
        top += part.height + HEAD
    return whole


def layers(grids: Sequence[Grid]) -> list[list[Grid]]:
    """The grids in groups that do not lie over each other, as tiles beside each other do."""
    found: list[list[Grid]] = []
    for grid in grids:
        free = next((layer for layer in found if not any(_overlap(grid.area, other.area) for other in layer)), None)
        if free is None:
            found.append([grid])
        else:
            free.append(grid)
    return found


def _overlap(one: Area, other: Area) -> bool:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    return wide > 1e-6 and min(one[3], other[3]) - max(one[1], other[1]) > 1e-6


def _colour(number: int, count: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(number / max(count, 1), 1.0, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def _boxes(shown: Image.Image, objects: Sequence[Located], names: Sequence[str], hues: Sequence[Any]) -> Image.Image:
    panel = shown.copy()
    for each, hue in zip(objects, hues, strict=True):
        if each.mask is not None:
            levels = np.asarray(each.mask, dtype=np.float32) * 255 * 0.5
            cover = Image.fromarray(levels.astype(np.uint8)).resize(panel.size, Image.Resampling.NEAREST)
            panel.paste(hue, (0, 0), cover)
    pen, font = ImageDraw.Draw(panel), ImageFont.load_default(12)
    for each, name, hue in zip(objects, names, hues, strict=True):
        left, top, right, bottom = _pixels(each.box, panel.size)
        pen.rectangle(
            (left, top, max(left, right - 1), max(top, bottom - 1)), outline=hue, width=2 if bottom - top > 24 else 1
        )
        corner = (min(max(left, 0), panel.width - pen.textlength(name, font=font)), max(top - 13, 0))
        pen.rectangle(pen.textbbox(corner, name, font=font), fill="white")
        pen.text(corner, name, fill=hue, font=font)
    return panel


def _pixels(area: Area, size: tuple[int, int]) -> tuple[int, int, int, int]:
    width, height = size
    return round(area[0] * width), round(area[1] * height), round(area[2] * width), round(area[3] * height)


def _heat(shown: Image.Image, grids: Sequence[Grid], weights: Tensor, hues: Sequence[Any]) -> Image.Image:
    """The image on a canvas that holds all grids, with their cells, and each region's weights in its colour."""
    areas = [_pixels(grid.area, shown.size) for grid in grids]
    left, top = min(0, *(area[0] for area in areas)), min(0, *(area[1] for area in areas))
    right = max(shown.width, *(area[2] for area in areas))
    bottom = max(shown.height, *(area[3] for area in areas))
    canvas = Image.new("RGB", (right - left, bottom - top), (90, 90, 90))
    pale = Image.blend(shown, Image.new("RGB", shown.size, "white"), 1 - FAINT)
    canvas.paste(pale, (-left, -top))
    seen = Image.new("L", canvas.size)
    for area in areas:
        seen.paste(255, (area[0] - left, area[1] - top, area[2] - left, area[3] - top))
    whole = canvas.copy()
    whole.paste(shown, (-left, -top))
    canvas.paste(whole, (0, 0), seen)
    pen = ImageDraw.Draw(canvas)
    for grid, area in zip(grids, areas, strict=True):
        corner, size = (area[0] - left, area[1] - top), (area[2] - area[0], area[3] - area[1])
        for number, hue in enumerate(hues):
            rows = [grid.start + row * grid.row_step for row in range(grid.rows)]
            covered = np.stack([weights[number, start : start + grid.columns].numpy() for start in rows])
            cover = Image.fromarray((covered * STRONGEST * 255).round().astype(np.uint8))
            canvas.paste(hue, corner, cover.resize(size, Image.Resampling.NEAREST))
        for column in range(grid.columns + 1):
            x = corner[0] + round(column * size[0] / grid.columns)
            pen.line((x, corner[1], x, corner[1] + size[1]), fill=(120, 120, 120))
        for row in range(grid.rows + 1):
            y = corner[1] + round(row * size[1] / grid.rows)
            pen.line((corner[0], y, corner[0] + size[0], y), fill=(120, 120, 120))
    return canvas


def _side_by_side(panels: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    font = ImageFont.load_default(12)
    widths = [max(panel.width, round(font.getlength(title))) for title, panel in panels]
    height = max(panel.height for _, panel in panels) + HEAD
    whole = Image.new("RGB", (sum(widths) + GAP * (len(panels) + 1), height + GAP), "white")
    left = GAP
    for (title, panel), width in zip(panels, widths, strict=True):
        ImageDraw.Draw(whole).text((left, 3), title, fill=(90, 90, 90), font=font)
        whole.paste(panel, (left, HEAD))
        left += width + GAP
    return whole
