"""Epochs in which every source has its share of the rows: exact, evenly spread, the same for any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from mllm_align.data.mixing import MixedDataset, MixedStream
from mllm_align.data.shares import Shares, generator, turns
from mllm_align.trainers.config import AlignConfig


class Cycle:
    """Some of a source's rows in every epoch: all come once before any comes twice, within an epoch and over epochs.

    Args:
        size: Rows of the source.
        count: Rows of an epoch, `size` at the most.
        key: Seed and names that the order hangs on, for `generator`.
        shuffle: Whether to draw the order; False keeps the rows as they come.
    """

    def __init__(self, size: int, count: int, key: tuple[int, str, int], shuffle: bool = True) -> None:
        self.size, self.count, self.key, self.shuffle = size, count, key, shuffle
        self._known: tuple[int, np.ndarray] | None = None

    def rows(self, epoch: int) -> np.ndarray:
        """(count,) int64: distinct rows."""
        number, start = divmod(epoch * self.count, self.size)
        first = self._order(number)[start : start + self.count]
        if len(first) == self.count:
            return first
        return np.concatenate([first, self._order(number + 1)[: self.count - len(first)]])

    def _order(self, number: int) -> np.ndarray:
        """The order of a pass over all rows, which hangs on the one before where an epoch lies across the two."""
        if not self.shuffle:
            return np.arange(self.size)
        known = self._known
        first = number
        while self._overlap(first) and not (known is not None and known[0] == first):
            first -= 1
        order = known[1] if known is not None and known[0] == first else self._drawn(first)
        for later in range(first + 1, number + 1):
            drawn = self._drawn(later)
            # Those that the epoch has had already come behind the others.
            had = np.isin(drawn, order[self.size - self._overlap(later) :])
            order = np.concatenate([drawn[~had], drawn[had]])
        self._known = number, order
        return order

    def _drawn(self, number: int) -> np.ndarray:
        return generator(*self.key, number).permutation(self.size)

    def _overlap(self, number: int) -> int:
        """Rows of the pass before that are of the epoch in which a pass begins."""
        return number * self.size % self.count


class SourceRows:
    """The rows of one source, in every epoch the same number of them.

    Where an epoch has more than there are, they are repeated as a whole, each as often as the others or once more.

    Args:
        size: Rows of the source.
        count: Rows of an epoch.
        cap: Distinct rows of an epoch at the most; None for all.
        seed: Of the draws.
        name: Of the source.
        shuffle: Whether to draw; False takes the rows as they come.
    """

    def __init__(self, size: int, count: int, cap: int | None, seed: int, name: str, shuffle: bool) -> None:
        distinct = min(size, count, size if cap is None else cap)
        self.seed, self.name, self.shuffle = seed, name, shuffle
        self.distinct = Cycle(size, distinct, (seed, name, 0), shuffle)
        self.repeats, rest = divmod(count, distinct)
        self.rest = Cycle(distinct, rest, (seed, name, 1), shuffle) if rest else None

    def rows(self, epoch: int) -> np.ndarray:
        """(count,) int64, in the order in which they come."""
        own = self.distinct.rows(epoch)
        again = [self._mixed(own, epoch, number) for number in range(1, self.repeats)]
        # Sorted, the rest are the same rows of the source in every epoch that has all of them.
        rest = [np.sort(own)[self.rest.rows(epoch)]] if self.rest is not None else []
        return np.concatenate([own, *again, *rest])

    def _mixed(self, rows: np.ndarray, epoch: int, number: int) -> np.ndarray:
        return generator(self.seed, self.name, 2, epoch, number).permutation(rows) if self.shuffle else rows


class ShareSampler(Sampler[list[int]]):
    """Yields this rank's batches of row numbers of a `MixedDataset`, each source with its share of an epoch.

    What all ranks have at one time is a part of one order that hangs on the seed and the epoch alone: it is the same
    rows for one process with batches of four, two with batches of two and four with single rows. Where the last rows
    of an epoch are fewer than ranks, some get an empty batch.

    Args:
        sizes: Rows of each source, one source behind the other.
        shares: What an epoch has of them.
        batch_size: Rows of a rank's batch.
        num_ranks: Over how many processes the batches are spread.
        rank: Which of them this is.
        shuffle: Whether to draw; False takes the rows of a source as they come.

    Raises:
        DataError: If a source that has a weight would never be drawn.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        shares: Shares,
        batch_size: int,
        *,
        num_ranks: int = 1,
        rank: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.shares, self.batch_size, self.num_ranks, self.rank, self.shuffle = (
            shares,
            batch_size,
            num_ranks,
            rank,
            shuffle,
        )
        self.counts = shares.per_epoch(sizes)
        self.starts = dict(zip(sizes, np.cumsum([0, *sizes.values()])[:-1].tolist(), strict=True))
        self.sources = {
            name: SourceRows(sizes[name], count, shares.caps.get(name), shares.seed, name, shuffle)
            for name, count in self.counts.items()
            if count
        }
        self.epoch = 0

    def __len__(self) -> int:
        return -(-sum(self.counts.values()) // (self.batch_size * self.num_ranks))

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's batches of the epoch that `set_epoch` named."""
        order = self.order(self.epoch)
        size = self.batch_size * self.num_ranks
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            share = len(rows) / self.num_ranks
            yield rows[round(self.rank * share) : round((self.rank + 1) * share)].tolist()

    def set_epoch(self, epoch: int) -> None:
        """Which epoch is drawn next."""
        self.epoch = epoch

    def order(self, epoch: int) -> np.ndarray:
        """(rows of an epoch,) int64: row numbers of the whole dataset."""
        whose = turns([self.counts[name] for name in self.sources])
        order = np.empty(len(whose), dtype=np.int64)
        for place, (name, source) in enumerate(self.sources.items()):
            order[whose == place] = self.starts[name] + source.rows(epoch)
        if not self.shuffle:
            return order
        # Within what all ranks have at one time any order has the same shares; a fixed one would give each rank
        # always the same sources.
        chance = np.random.default_rng((self.shares.seed, epoch)).random(len(order))
        return order[np.lexsort((chance, np.arange(len(order)) // (self.batch_size * self.num_ranks)))]


def share_sampler(args: AlignConfig, dataset: Any) -> ShareSampler | None:
    """The sampler of a run; None where an epoch is every row once, or the data are streams.

    Args:
        args: Of the run.
        dataset: Training data after `join_sources`, or None.

    Raises:
        DataError: If a source that has a weight would never be drawn.
    """
    if not isinstance(dataset, MixedDataset) or not dataset.shares.draws:
        return None
    return ShareSampler(
        dataset.sizes,
        dataset.shares,
        args.per_device_train_batch_size,
        num_ranks=args.world_size,
        rank=args.process_index,
        shuffle=args.train_sampling_strategy == "random",
    )


@dataclass(frozen=True)
class SourceShare:
    """What a run takes of one source.

    Attributes:
        name: Of the source.
        rows: Rows that it has; None for a stream.
        used: Rows that an epoch may draw from, after the cap; None for a stream.
        drawn: Rows of an epoch.
        of: Rows of an epoch from all sources.
    """

    name: str
    rows: int | None
    used: int | None
    drawn: int
    of: int

    def __str__(self) -> str:
        """One line."""
        has = "a stream" if self.rows is None else f"{self.rows:,} rows"
        if self.rows is not None and self.used != self.rows:
            has = f"{self.used:,} of {has}"
        return f"{self.name}: {has}, {self.drawn:,} an epoch, {100 * self.drawn / self.of:.1f} %"


def source_shares(dataset: Any) -> list[SourceShare]:
    """What a run takes of each of its sources; empty where data has no named ones, or streams end when they end.

    Args:
        dataset: Training data after `join_sources`, or None.

    Raises:
        DataError: If a source that has a weight would never be drawn.
    """
    if isinstance(dataset, MixedStream):
        counts = dataset.counts or {}
        return [SourceShare(name, None, None, count, sum(counts.values())) for name, count in counts.items()]
    if not isinstance(dataset, MixedDataset):
        return []
    sizes, caps = dataset.sizes, dataset.shares.caps
    counts = dataset.shares.per_epoch(sizes)
    return [
        SourceShare(name, len(part), min(sizes[name], caps.get(name, sizes[name])), counts[name], sum(counts.values()))
        for name, part in dataset.parts.items()
    ]
