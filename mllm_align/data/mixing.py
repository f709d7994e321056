"""Several data sources as one dataset, each row tagged with its source."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch.utils.data

from mllm_align.data.errors import DataError
from mllm_align.data.loading import undecoded


class MixedDataset(torch.utils.data.Dataset):
    """Map-style datasets one behind the other, their columns as different as they like.

    Some rows change from epoch to epoch; a dataset with such rows has a true `by_epoch` and takes `(index, epoch)`.

    Args:
        parts: Datasets (anything with a length and integer indexing) by source name.
    """

    def __init__(self, parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        self.parts = {name: undecoded(part) for name, part in parts.items()}
        self.ends = list(accumulate(len(part) for part in self.parts.values()))

    def __len__(self) -> int:
        return self.ends[-1]

    @property
    def by_epoch(self) -> bool:
        """Whether a part has other rows in every epoch."""
        return any(getattr(part, "by_epoch", False) for part in self.parts.values())

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        """The row at an index, or at `(index, epoch)`, with its `source`.

        Raises:
            DataError: If a part refuses the row.
        """
        index, epoch = item if isinstance(item, tuple) else (item, 0)
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        place = bisect_right(self.ends, index)
        name, part = list(self.parts.items())[place]
        start = self.ends[place - 1] if place else 0
        own: Any = (index - start, epoch) if getattr(part, "by_epoch", False) else index - start
        try:
            return {**part[own], "source": name}
        except DataError as error:
            raise DataError(f"source {name!r}: {error}") from error


class MixedStream(torch.utils.data.IterableDataset):
    """Streams in turn, one row of each; a stream that ends leaves the others their turns, so no row repeats.

    Args:
        parts: Iterable datasets by source name.
    """

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts = {name: undecoded(part) for name, part in parts.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Rows with their `source`."""
        running = {name: iter(part) for name, part in self.parts.items()}
        while running:
            for name in list(running):
                row = next(running[name], None)
                if row is None:
                    del running[name]
                else:
                    yield {**row, "source": name}

    def set_epoch(self, epoch: int) -> None:
        """Tell every stream that can shuffle which epoch it is."""
        for part in self.parts.values():
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)


def mix_sources(parts: Mapping[str, Any]) -> MixedDataset | MixedStream:
    """One dataset of several sources, with a `source` column.

    Map-style datasets follow one another (the sampler shuffles); as soon as one is a stream, all take turns.

    Raises:
        DataError: If there is no part, or a part has no rows.
    """
    if not parts:
        raise DataError("no data sources to mix; give {'name': dataset, ...}")
    for name, part in parts.items():
        if hasattr(part, "__len__") and not len(part):
            raise DataError(f"source {name!r} has no rows")
    if all(hasattr(part, "__len__") for part in parts.values()):
        return MixedDataset(parts)
    return MixedStream(parts)
