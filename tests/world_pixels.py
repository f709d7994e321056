"""What a rendered picture of one object shows, read from its pixels alone."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
from PIL import Image

from mllm_align.data.world.catalogue import COLOURS, SHAPES, SIZES
from mllm_align.data.world.render import silhouette

CELL = 16


def only_object(image: Image.Image) -> tuple[str, str, str, tuple[int, int]]:
    """Shape, colour, size and cell (row, column) of the one object of a 64 x 64 picture in a grid of four."""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    common = Counter(map(tuple, pixels.reshape(-1, 3).tolist()))
    background = np.array(common.most_common(1)[0][0])
    (colour,) = [name for name, value in COLOURS.items() if common[value]]
    way = np.array(COLOURS[colour]) - background
    cover = np.clip((pixels - background) @ way / (way @ way), 0, 1)
    own, (top, left) = _cut(cover)
    unlike = {way: np.abs(own - known).mean() for way, known in _ways().items() if known.shape == own.shape}
    shape, size = min(unlike, key=lambda way: unlike[way])
    assert unlike[shape, size] < 0.02, "no shape of the world"
    middle = (int(top + own.shape[0] / 2) // CELL, int(left + own.shape[1] / 2) // CELL)
    return shape, colour, size, middle


@cache
def _ways() -> dict[tuple[str, str], np.ndarray]:
    return {(shape, size): _cut(silhouette(shape, SIZES[size], CELL))[0] / 255 for shape in SHAPES for size in SIZES}


def _cut(cover: np.ndarray | Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
    """What is not empty, and where it begins (row, column)."""
    array = np.asarray(cover, dtype=float)
    there = array > 0.258 * array.max()  # between two of the steps, sixty-fourths, that a rounded pixel keeps apart
    rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
    return array[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], (int(rows[0]), int(columns[0]))
