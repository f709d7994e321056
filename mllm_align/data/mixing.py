"""Several data sources as one dataset, each row tagged with its source."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch.utils.data

from mllm_align.data.errors import DataError
from mllm_align.data.loading import undecoded
from mllm_align.data.shares import Shares, split, turns


class MixedDataset(torch.utils.data.Dataset):
    """Map-style datasets one behind the other, their columns as different as they like.

    Some rows change from epoch to epoch; a dataset with such rows has a true `by_epoch` and takes `(index, epoch)`.

    Args:
        parts: Datasets (anything with a length and integer indexing) by source name.
        shares: Their caps leave rows out.
    """

    def __init__(self, parts: Mapping[str, Sequence[Mapping[str, Any]]], shares: Shares | None = None) -> None:
        self.parts = {name: undecoded(part) for name, part in parts.items()}
        self.shares = shares or Shares()
        self._kept = {name: self.shares.rows_of(name, len(part)) for name, part in self.parts.items()}
        self.ends = list(accumulate(self.sizes.values()))

    def __len__(self) -> int:
        return self.ends[-1]

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each source, without those that a cap leaves out."""
        kept = {name: len(rows) for name, rows in self._kept.items() if rows is not None}
        return {name: kept.get(name, len(part)) for name, part in self.parts.items()}

    def with_parts(self, parts: Mapping[str, Any]) -> MixedDataset:
        """The same mix of other datasets of the same lengths."""
        return MixedDataset(parts, self.shares)

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
        kept = self._kept[name]
        number = index - start if kept is None else int(kept[index - start])
        own: Any = (number, epoch) if getattr(part, "by_epoch", False) else number
        try:
            return {**part[own], "source": name}
        except DataError as error:
            raise DataError(f"source {name!r}: {error}") from error


class MixedStream(torch.utils.data.IterableDataset):
    """Streams in turn, one row of each; a stream that ends leaves the others their turns, so no row repeats.

    With shares an epoch has its number of rows, each stream as many turns as its weight says, evenly spread, and a
    stream that ends begins again. Workers share an epoch; each of them keeps to the weights.

    Args:
        parts: Iterable datasets by source name.
        shares: Weights and the rows of an epoch, or neither.

    Raises:
        DataError: If shares tell the one without the other, or have a cap.
    """

    def __init__(self, parts: Mapping[str, Any], shares: Shares | None = None) -> None:
        self.parts = {name: undecoded(part) for name, part in parts.items()}
        self.shares = shares or Shares()
        self.counts = self.shares.of_streams(self.parts)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Rows with their `source`."""
        return self._in_turn() if self.counts is None else self._by_weight(self.counts)

    def with_parts(self, parts: Mapping[str, Any]) -> MixedStream:
        """The same mix of other streams."""
        return MixedStream(parts, self.shares)

    def _in_turn(self) -> Iterator[dict[str, Any]]:
        running = {name: iter(part) for name, part in self.parts.items()}
        while running:
            for name in list(running):
                row = next(running[name], None)
                if row is None:
                    del running[name]
                else:
                    yield {**row, "source": name}

    def _by_weight(self, counts: Mapping[str, int]) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        own = split(len(range(number, sum(counts.values()), workers)), counts)
        names = list(own)
        running: dict[str, Iterator[Any]] = {}
        for place in turns(list(own.values())):
            name = names[place]
            row = next(running[name], None) if name in running else None
            if row is None:
                running[name] = iter(self.parts[name])
                row = next(running[name], None)
            if row is None:
                several = ": fewer dataloader_num_workers may leave each of them some" if worker else ""
                raise DataError(f"source {name!r} is a stream without rows{several}")
            yield {**row, "source": name}

    def set_epoch(self, epoch: int) -> None:
        """Tell every stream that can shuffle which epoch it is."""
        for part in self.parts.values():
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)


def mix_sources(parts: Mapping[str, Any], shares: Shares | None = None) -> MixedDataset | MixedStream:
    """One dataset of several sources, with a `source` column.

    Map-style datasets follow one another (the sampler shuffles); as soon as one is a stream, all take turns.

    Args:
        parts: Datasets by source name.
        shares: Caps and weights; of map-style datasets, the weights are the sampler's.

    Raises:
        DataError: If there is no part, a part has no rows, or the shares are not those of the parts.
    """
    if not parts:
        raise DataError("no data sources to mix; give {'name': dataset, ...}")
    for name, part in parts.items():
        if hasattr(part, "__len__") and not len(part):
            raise DataError(f"source {name!r} has no rows")
    if shares is not None:
        shares.check_names(parts)
    if all(hasattr(part, "__len__") for part in parts.values()):
        return MixedDataset(parts, shares)
    return MixedStream(parts, shares)
