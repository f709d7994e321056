"""Batches of about equally many tokens, of rows of similar length, the same number on every rank; and of any epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from mllm_align.data.lengths import PackedLengths
from mllm_align.signals.packing import group_starts

CHUNK_BATCHES = 50  # sorted together: more gives less padding, fewer gives more chance
DRAWS = 4  # epochs that are drawn to settle how many batches an epoch has
ATTEMPTS = 16  # at one epoch that has no more than that


@dataclass(frozen=True)
class PaddedTokens:
    """Tokens of a batch as it is run: prompts that are shared count once, padding counts.

    Batches are tried row by row, in every epoch, so what a row adds to one is worked out once.

    Args:
        lengths: Of all rows.
        shared: Whether responses share their prompt.
        least_fill: See `group_packs`.
        max_tokens_per_forward: See `group_packs`.
    """

    lengths: PackedLengths
    shared: bool
    least_fill: float
    max_tokens_per_forward: int | None = None

    @cached_property
    def _packs(self) -> list[dict[object, tuple[int, int]]]:
        """For each row, by what sequences are told apart, the tokens of a prompt and those of its responses."""
        branches, starts = self.lengths.branches.tolist(), self.lengths.starts.tolist()
        rows = []
        for row, (start, end) in enumerate(pairwise(starts)):
            packs: dict[object, tuple[int, int]] = {}
            for number, (prefix, size, tail) in enumerate(branches[start:end]):
                key = prefix if self.shared else (row, number)
                packs[key] = size, packs.get(key, (size, 0))[1] + tail
            rows.append(packs)
        return rows

    @cached_property
    def _referenced(self) -> list[bool]:
        return self.lengths.referenced.tolist()

    @cached_property
    def _longest(self) -> list[int]:
        return [max((size + tail for size, tail in packs.values()), default=0) for packs in self._packs]

    def __call__(self, rows: Sequence[int]) -> int:
        """Padded tokens of the batch that some rows make."""
        together = self._run(rows)
        referenced = [self._referenced[row] for row in rows]
        if all(referenced) or not any(referenced):
            return together
        # Rows with and without reference may be run apart; the budget holds either way.
        sides = ([row for row, own in zip(rows, referenced, strict=True) if own == flag] for flag in (True, False))
        return max(together, sum(map(self._run, sides)))

    def longest(self, row: int) -> int:
        """Tokens of a row's longest sequence."""
        return self._longest[row]

    def _run(self, rows: Sequence[int]) -> int:
        lengths: dict[object, int] = {}
        for row in rows:
            for key, (size, tail) in self._packs[row].items():
                lengths[key] = lengths.get(key, size) + tail
        ordered = sorted(lengths.values(), reverse=True)
        starts = group_starts(ordered, self.least_fill, self.max_tokens_per_forward)
        ends = [*starts[1:], len(ordered)]
        return sum((end - start) * ordered[start] for start, end in zip(starts, ends, strict=True))


class TokenBudgetSampler(Sampler[list[int]]):
    """Yields this rank's batches of row numbers.

    Every epoch has the same number of batches, every rank gets equally many, and no row comes twice. All ranks draw
    the same batches from (seed, epoch) and take turns at them, so nothing has to be sent, and a run that is resumed
    finds the batches that it would have had.

    Args:
        tokens: Tokens of a batch.
        rows: The rows to draw from.
        budget: Tokens of a batch at the most.
        seed: Of the draws.
        num_ranks: Over how many processes the batches are spread.
        rank: Which of them this is.
        shuffle: Whether to draw; False takes the rows as they come.

    Raises:
        ValueError: If the rows do not make as many batches as every rank needs to get equally many.
    """

    def __init__(
        self,
        tokens: PaddedTokens,
        rows: Sequence[int],
        budget: int,
        *,
        seed: int = 0,
        num_ranks: int = 1,
        rank: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.tokens = tokens
        self.rows = list(rows)
        self.budget = budget
        self.seed = seed
        self.num_ranks = num_ranks
        self.rank = rank
        self.shuffle = shuffle
        self.epoch = 0
        total = sum(tokens([row]) for row in self.rows)
        self._chunk = self._chunk_size(budget * len(self.rows) / total)
        most = max(len(self._draw(epoch, 0)) for epoch in range(DRAWS if shuffle else 1))
        self.num_batches = -(-most // num_ranks) * num_ranks
        if self.num_batches > len(self.rows):
            raise ValueError(
                f"{len(self.rows)} rows make {most} batches of max_tokens_per_batch={budget}, which {num_ranks} "
                "processes cannot share evenly without a row twice or left out: add rows, use fewer processes, or "
                "raise max_tokens_per_batch"
            )
        self.batches(0)

    def __len__(self) -> int:
        return self.num_batches // self.num_ranks

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's batches of the epoch that `set_epoch` named."""
        yield from self.batches(self.epoch)[self.rank :: self.num_ranks]

    def set_epoch(self, epoch: int) -> None:
        """Which epoch is drawn next."""
        self.epoch = epoch

    def batches(self, epoch: int) -> list[list[int]]:
        """The batches of all ranks."""
        draws = (self._draw(epoch, attempt) for attempt in range(ATTEMPTS))
        fitting = next((draw for draw in draws if len(draw) <= self.num_batches), None)
        batches = self._split(self._draw(0, 0) if fitting is None else fitting)
        if self.shuffle:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(batches))
            batches = [batches[place] for place in order]
        return batches

    def _chunk_size(self, rows_per_batch: float) -> int:
        batches = len(self.rows) / rows_per_batch
        return max(1, round(rows_per_batch * min(CHUNK_BATCHES, max(1, batches / 4))))

    def _draw(self, epoch: int, attempt: int) -> list[list[int]]:
        """Batches of one random order: rows of a part of it sorted by length, filled up to the budget."""
        if not self.shuffle:
            return self._fill(self.rows)
        order = np.random.default_rng((self.seed, epoch, attempt)).permutation(len(self.rows))
        batches: list[list[int]] = []
        for start in range(0, len(order), self._chunk):
            chunk = [self.rows[place] for place in order[start : start + self._chunk]]
            if batches:
                # What is left of the chunk before is no full batch.
                chunk = batches.pop() + chunk
            batches.extend(self._fill(sorted(chunk, key=self.tokens.longest, reverse=True)))
        return batches

    def _fill(self, rows: Sequence[int]) -> list[list[int]]:
        batches, start, guess = [], 0, 1
        while start < len(rows):
            guess = min(guess, len(rows) - start)
            while guess > 1 and not self._fits(rows[start : start + guess]):
                guess -= 1
            while start + guess < len(rows) and self._fits(rows[start : start + guess + 1]):
                guess += 1
            batches.append(list(rows[start : start + guess]))
            start += guess
        return batches

    def _fits(self, rows: Sequence[int]) -> bool:
        return self.tokens(rows) <= self.budget

    def _split(self, batches: list[list[int]]) -> list[list[int]]:
        """As many batches as an epoch has, by cutting those with the most rows."""
        batches = list(batches)
        while len(batches) < self.num_batches:
            place = max(range(len(batches)), key=lambda index: len(batches[index]))
            batches[place : place + 1] = self._cut(batches[place])
        return batches

    def _cut(self, batch: list[int]) -> list[list[int]]:
        """Two batches, as even as the budget allows: rows apart may need more padding than together."""
        middle = len(batch) // 2
        for place in sorted(range(1, len(batch)), key=lambda place: abs(place - middle)):
            halves = [batch[:place], batch[place:]]
            if all(map(self._fits, halves)):
                return halves
        raise ValueError(
            f"a batch of {len(batch)} rows cannot be cut so that {self.num_ranks} processes get equally many: change "
            "max_tokens_per_batch a little"
        )


class EpochBatches(Sampler[list[Any]]):
    """The batches of another batch sampler, which knows at every place in a chain of samplers which epoch it is.

    A dataset cannot count epochs: workers that stay have copies of it. So rows that change from epoch to epoch are
    asked for by `(index, epoch)`.

    It also tells the samplers within, which accelerate fails to do for a run over several processes that is resumed in
    the middle of an epoch: its rows would come in the order of the first one.

    Args:
        batches: This rank's batches of indices.
        by_epoch: Whether to give `(index, epoch)` in place of the index.
    """

    def __init__(self, batches: Any, by_epoch: bool) -> None:
        self.batches = batches
        self.by_epoch = by_epoch
        self.epoch = 0
        # What loaders of accelerate ask their batch sampler for.
        self.batch_size: int | None = getattr(batches, "batch_size", None)
        self.num_processes: int = getattr(batches, "num_processes", 1)
        self.split_batches: bool = getattr(batches, "split_batches", False)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Any]]:
        """The batches of the epoch that `set_epoch` named."""
        epoch = self.epoch
        for batch in self.batches:
            yield [(index, epoch) for index in batch] if self.by_epoch else batch

    def set_epoch(self, epoch: int) -> None:
        """Which epoch is drawn next."""
        self.epoch = epoch
        within = self.batches
        while within is not None:
            if hasattr(within, "set_epoch"):
                within.set_epoch(epoch)
            within = getattr(within, "batch_sampler", None) or getattr(within, "sampler", None)
