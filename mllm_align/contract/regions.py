"""Regions on the images of a batch: what an objective is told of each beside its feature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Regions:
    """The regions on the images of one column, in order of row; all on the host, R of each.

    Attributes:
        row: The batch row of each.
        image: Which of the row's images it is on.
        boxes: Left, top, right and bottom as shares of the image; of a mask, what it fits into.
        object_ids: Which thing each is, or "".
        texts: What it is called, or "".
        kinds: Its class, or "".
        coverage: How many tokens' areas it covers in all; empty where nobody counted.
        negatives: Texts that it is none of, any number; empty where nobody told.
        positives: Other texts that say the same of it, likewise.
        num_tokens: How many of its image's tokens it covers, be it in part; empty where nobody counted.
        num_words: How many states there are of its text, 0 where it has none or it is not read; empty where nobody
            counted.
    """

    row: tuple[int, ...] = ()
    image: tuple[int, ...] = ()
    boxes: tuple[Box, ...] = ()
    object_ids: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    coverage: tuple[float, ...] = ()
    negatives: tuple[tuple[str, ...], ...] = ()
    positives: tuple[tuple[str, ...], ...] = ()
    num_tokens: tuple[int, ...] = ()
    num_words: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.row)

    def select(self, rows: Sequence[int]) -> Regions:
        """The regions of some rows, in the order given; row n of the result is `rows[n]`."""
        own: dict[int, list[int]] = {}
        for place, row in enumerate(self.row):
            own.setdefault(row, []).append(place)
        found = [(place, new) for new, row in enumerate(rows) for place in own.get(row, ())]
        told = {f.name: own for f in fields(self) if (own := getattr(self, f.name))}
        kept = {name: tuple(own[place] for place, _ in found) for name, own in told.items()}
        return Regions(**{**kept, "row": tuple(new for _, new in found)})
