"""Mosaics of captioned images, after CLIM (Wu et al., 2024), https://arxiv.org/abs/2312.11376

Several rows' images side by side are one image, and each of them a region of it that is called what its row says. So
regions with texts come of captions alone, without a box that anybody drew.

    train_dataset={"mosaics": mosaics(rows, sizes=(2, 3))}        in Python
    data: {mosaics: {path: ..., mosaic: {sizes: [2, 3]}}}         in a recipe
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.utils.data
from PIL import Image

from mllm_align.data.corrupt.drawn import seed_of
from mllm_align.data.errors import DataError
from mllm_align.data.images import MadeImage, image_key, load_image
from mllm_align.data.loading import undecoded
from mllm_align.data.messages import read_response
from mllm_align.data.mixing import MixedDataset
from mllm_align.data.schema import UNREADABLE, missing_column, row_name

# Part of every key: another number once the same parts make another picture.
VERSION = 1
LARGEST = 4
PROMPT = "What is in each part of the picture?"


@dataclass(frozen=True)
class Mosaics:
    """How rows become mosaics.

    Args:
        sizes: Parts along each side, one mosaic of each size in turn: 1 (the image alone) to 4. CLIM has 2, 3 and 4.
        side: Width and height of a mosaic in pixels. CLIM has 1024; a multiple of the token's side for which the parts
            are one, too, keeps their borders between tokens.
        text: The column that says what is on an image.
        redraw: Whether which rows come together is drawn anew in every epoch.
        seed: Of the run.
    """

    sizes: tuple[int, ...] = (2,)
    side: int = 672
    text: str = "chosen"
    redraw: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses sizes that make no mosaic."""
        sizes = tuple(self.sizes) if isinstance(self.sizes, list | tuple) else (self.sizes,)
        if not sizes or not all(type(size) is int and 1 <= size <= LARGEST for size in sizes):
            raise DataError(f"sizes must be whole numbers from 1 to {LARGEST}, got {self.sizes!r}")
        object.__setattr__(self, "sizes", sizes)
        if type(self.side) is not int or self.side < max(sizes):
            raise DataError(
                f"side must be a whole number of pixels, one for each part at the least, not {self.side!r}"
            )
        if not isinstance(self.text, str) or not self.text:
            raise DataError(f"text must be the name of a column, not {self.text!r}")
        if not isinstance(self.redraw, bool):
            raise DataError(f"redraw must be true or false, not {self.redraw!r}")


@dataclass(frozen=True)
class MosaicImage(MadeImage):
    """Images in rows and columns, each squashed into its part.

    Args:
        parts: As many as the square of a whole number, row by row; whatever `load_image` reads.
        side: Width and height in pixels.
    """

    parts: tuple[Any, ...]
    side: int

    @property
    def size(self) -> int:
        """Parts along each side."""
        return round(len(self.parts) ** 0.5)

    def load(self, where: str) -> Image.Image:
        """Reads the parts and puts them together.

        Raises:
            DataError: If one of them cannot be read.
        """
        canvas = Image.new("RGB", (self.side, self.side))
        for part, (left, top, right, bottom) in zip(self.parts, cells(self.size, self.side), strict=True):
            image = load_image(part, where).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
            canvas.paste(image, (left, top))
        return canvas

    def key(self, where: str) -> str:
        """Equal for equal parts in the same places.

        Raises:
            DataError: If a part must be read for it and cannot be.
        """
        facts = (VERSION, self.side, *(image_key(part, where) for part in self.parts))
        return f"mosaic:{hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()}"

    @property
    def sized_as(self) -> Any:
        """Itself: its size is known, but whether its parts can be read is worth knowing before training."""
        return self


def cells(size: int, side: int) -> list[tuple[int, int, int, int]]:
    """Left, top, right and bottom of the parts in pixels, row by row."""
    edges = [round(number * side / size) for number in range(size + 1)]
    return [(left, top, right, bottom) for top, bottom in pairwise(edges) for left, right in pairwise(edges)]


class MosaicDataset(torch.utils.data.Dataset):
    """Map-style rows of mosaics; see `mosaics`.

    Args:
        rows: Map-style rows with an image and a text each.
        options: How they become mosaics.
    """

    def __init__(self, rows: Any, options: Mosaics) -> None:
        self.rows: Any = undecoded(rows)
        self.options = options
        self.starts, self.sizes = _plan(len(rows), options.sizes)
        self._order: tuple[int, np.ndarray] | None = None
        # In shared memory, because workers that stay have copies of the dataset.
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    @property
    def by_epoch(self) -> bool:
        """Whether rows are asked for as `(index, epoch)` while training."""
        return self.options.redraw

    def set_epoch(self, epoch: int) -> None:
        """Which epoch is iterated over next."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        """The mosaic at an index as epoch 0 has it, or at `(index, epoch)`.

        Raises:
            DataError: If one of its rows lacks an image or a text.
        """
        index, epoch = item if isinstance(item, tuple) else (item, 0)
        index, epoch = range(len(self))[index], epoch if self.by_epoch else 0
        size = self.sizes[index]
        places = self._drawn(epoch)[self.starts[index] :][: size * size].tolist()
        found = [self._part(place) for place in places]
        side = self.options.side
        return {
            "id": f"mosaic {index} of epoch {epoch}",
            "image": MosaicImage(tuple(image for image, _ in found), side),
            "prompt": PROMPT,
            "objects": [
                {"box": [edge / side for edge in cell], "text": text}
                for cell, (_, text) in zip(cells(size, side), found, strict=True)
            ],
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All mosaics of the epoch that `set_epoch` named."""
        epoch = int(self._epoch)
        for index in range(len(self)):
            yield self[index, epoch]

    def _drawn(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            generator = np.random.default_rng(seed_of(self.options.seed, "mosaics", epoch))
            self._order = epoch, generator.permutation(len(self.rows))
        return self._order[1]

    def _part(self, place: int) -> tuple[Any, str]:
        """Image and text of a row."""
        raw = self.rows[place]
        where = row_name(raw, place)
        if raw.get(UNREADABLE):
            raise DataError(f"{where}: {raw[UNREADABLE]}")
        images = raw.get("images") if raw.get("image") is None else [raw["image"]]
        if not isinstance(images, list | tuple) or len(images) != 1:
            count = len(images) if isinstance(images, list | tuple) else 0
            raise DataError(f"{where}: a part of a mosaic is one image, and the row has {count}: leave it out")
        column = self.options.text
        if raw.get(column) is None:
            there = [name for name, value in raw.items() if value is not None]
            raise missing_column(column, there, where, ", which says what a part of a mosaic is called")
        return images[0], read_response(raw[column], column, where).strip()


def mosaics(dataset: Any, **options: Any) -> MosaicDataset:
    """Rows whose images are those of several rows, with one region for each and its text, for `RegionText`.

    Every row is there once an epoch. Which come together is fixed by the seed of the run (`data_seed`) and the epoch,
    whoever reads it; evaluation always sees what epoch 0 has. Where there are too few rows left for a mosaic, they
    stay single images. A mosaic has neither prompt nor response of its own: it is no row for next-token training.

    Args:
        dataset: Map-style rows, one source.
        **options: Of `Mosaics`.

    Raises:
        DataError: If an option is unknown or makes no sense, or the rows are a stream.

    Example:
        >>> from mllm_align.data.mosaic import mosaics
        >>> rows = [{"image": f"{name}.jpg", "chosen": f"A {name}."} for name in ("cat", "dog", "cup", "tree")]
        >>> (row,) = mosaics(rows)
        >>> sorted(each["text"] for each in row["objects"]), row["objects"][0]["box"]
        (['A cat.', 'A cup.', 'A dog.', 'A tree.'], [0.0, 0.0, 0.5, 0.5])
    """
    if isinstance(dataset, Mapping):
        raise DataError("mosaics() takes one dataset: wrap the source whose images come together, not all of them")
    if not hasattr(dataset, "__len__"):
        raise DataError("a mosaic is made of rows from anywhere, which a stream does not have: load without streaming")
    return MosaicDataset(dataset, mosaics_from(options))


def mosaics_from(options: Mapping[str, Any]) -> Mosaics:
    """What a recipe says: `sizes`, `side`, `text` and `redraw`.

    Raises:
        DataError: If an option is unknown (the nearest is named), or a value makes no sense.
    """
    known = [field.name for field in fields(Mosaics) if field.name != "seed"]
    for name in options:
        if name not in known:
            near = get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"a mosaic has no option {name!r}; it has {', '.join(known)}{hint}")
    return Mosaics(**options)


def with_mosaics(dataset: Any, change: Callable[[Mosaics], Mosaics]) -> Any:
    """A dataset whose mosaics are drawn otherwise; the one that was given stays as it is."""
    if isinstance(dataset, MosaicDataset):
        return MosaicDataset(dataset.rows, change(dataset.options))
    if isinstance(dataset, MixedDataset) and any(isinstance(part, MosaicDataset) for part in dataset.parts.values()):
        return dataset.with_parts({name: with_mosaics(part, change) for name, part in dataset.parts.items()})
    return dataset


def seeded(options: Mosaics, seed: int, *, once: bool) -> Mosaics:
    """The mosaics of a run, for all its epochs where `once` is set."""
    return replace(options, seed=seed, redraw=options.redraw and not once)


def _plan(count: int, sizes: Sequence[int]) -> tuple[list[int], list[int]]:
    """Where in the drawn order each mosaic begins, and its parts along each side."""
    starts: list[int] = []
    found: list[int] = []
    start = 0
    while start < count:
        size = sizes[len(starts) % len(sizes)]
        size = size if start + size * size <= count else 1
        starts.append(start)
        found.append(size)
        start += size * size
    return starts, found
