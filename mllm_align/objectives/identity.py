"""What was read twice in a batch: pairs of an image and a text that are no negatives, whoever's rows they are of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mllm_align.contract import Signals
from mllm_align.objectives.host import sent
from mllm_align.objectives.padding import rows_of_entries


class Ids(NamedTuple):
    """What the images and texts of B rows are, as numbers that are equal where the same was read.

    Attributes:
        images: (B,) int64, 0 where nobody told.
        texts: (B,) likewise.
        true: (2, K) int64: a row, and a listed text that is true of its image, since it is the text of that row or of
            one with the same image.
        repeated: Whether two rows share an image or a text, or a listed text is true of some row.
    """

    images: Tensor
    texts: Tensor
    true: Tensor
    repeated: bool

    @classmethod
    def of(cls, images: Sequence[int], texts: Sequence[int], true: Sequence[tuple[int, int]], device: object) -> Ids:
        """From numbers of rows, each (B,), and `true_pairs`, on the host."""
        known = ([number for number in side if number] for side in (images, texts))
        repeated = bool(true) or any(len(set(own)) < len(own) for own in known)
        pairs = torch.tensor(true, dtype=torch.long).reshape(-1, 2).T.contiguous()
        own, other = (torch.tensor(side, dtype=torch.long) for side in (images, texts))
        return cls(sent(own, device), sent(other, device), sent(pairs, device), repeated)

    def alike(self, rows: slice | Tensor = slice(None), columns: slice | Tensor = slice(None)) -> Tensor:
        """(N, M) bool: of some rows and some others, which share an image or a text; no row with itself."""
        place = torch.arange(len(self.texts), device=self.texts.device)
        shared = same(self.images[rows], self.images[columns]) | same(self.texts[rows], self.texts[columns])
        return shared & (place[rows][:, None] != place[columns])

    def true_of(self, rows: slice, columns: slice) -> Tensor:
        """(N, M) bool: of some rows and some listed texts, given by their ends, which are true of an image."""
        return marked(self.true, rows, columns)


def same(one: Tensor, other: Tensor) -> Tensor:
    """(N, M) bool: which of (N,) and (M,) numbers are equal and known, so not 0."""
    return (one[:, None] == other) & (one[:, None] != 0)


def marked(pairs: Tensor, rows: slice, columns: slice) -> Tensor:
    """(N, M) bool: the part of a table, given by its ends, in which some (2, K) places are True."""
    (top, bottom), (left, right) = ((part.start, part.stop) for part in (rows, columns))
    row, column = pairs
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    size = (bottom - top) * (right - left)
    # What lies outside goes to a last place, which is cut off.
    place = torch.where(inside, (row - top) * (right - left) + column - left, size)
    table = torch.zeros(size + 1, dtype=torch.bool, device=pairs.device).index_fill_(0, place, True)
    return table[:size].view(bottom - top, right - left)


def true_pairs(
    images: Sequence[int], known: Iterable[tuple[int, int]], listed: Sequence[int]
) -> list[tuple[int, int]]:
    """Rows and listed texts that are true of their images, on the host.

    Args:
        images: (B,) of each row, 0 where nobody told.
        known: Rows, and the number of a text that is true of each; a row may come more than once.
        listed: (M,) numbers of texts, 0 where nobody told.

    Returns:
        Rows and places in `listed`, each pair once, in order of place and row.
    """
    places: dict[int, list[int]] = {}
    for place, number in enumerate(listed):
        if number:
            places.setdefault(number, []).append(place)
    rows_of_image: dict[int, list[int]] = {}
    for row, number in enumerate(images):
        rows_of_image.setdefault(number, []).append(row)
    found = set()
    for row, number in known:
        for place in places.get(number, ()):
            found |= {(place, each) for each in (rows_of_image[images[row]] if images[row] else [row])}
    return [(row, place) for place, row in sorted(found)]


def ids_by_row(signals: Signals, name: str, size: int) -> list[int]:
    """(size,) numbers of what a feature read in each row, on the host; 0 where nobody told."""
    found = [0] * size
    for row, number in zip(rows_of_entries(signals, name), ids_of_entries(signals, name), strict=True):
        found[row] = number
    return found


def ids_of_entries(signals: Signals, name: str) -> list[int]:
    """The number of each entry of a feature, on the host; 0 where nobody told."""
    return list(signals.host_feature_ids.get(name, ())) or [0] * len(rows_of_entries(signals, name))


def first_places(numbers: Sequence[int]) -> list[int]:
    """Of each number the first place where it stands; its own where it is 0."""
    first: dict[int, int] = {}
    return [first.setdefault(number, place) if number else place for place, number in enumerate(numbers)]
