"""How long the packed sequences of every row are: learnt in the pass that checks the data, kept for all epochs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mllm_align.data.collator import AlignCollator
from mllm_align.data.encode import EncodedView
from mllm_align.data.schema import DataError, Row


class BranchLength(NamedTuple):
    """One response behind one prefix, in tokens.

    Attributes:
        prefix: A number that is equal for equal prompts under equal images.
        prefix_tokens: Tokens of the prompt, image tokens included.
        tail: Tokens that the response adds to the sequence: all but its last, which is predicted and predicts nothing.
    """

    prefix: int
    prefix_tokens: int
    tail: int


@dataclass(frozen=True)
class PackedLengths:
    """The branches of R rows, row after row.

    Attributes:
        starts: (R + 1,) where the branches of each row begin, and the end.
        branches: (N, 3) int64, a `BranchLength` each.
        referenced: (R,) bool, whether the row is also scored under the reference.
    """

    starts: np.ndarray
    branches: np.ndarray
    referenced: np.ndarray

    def __len__(self) -> int:
        return len(self.referenced)

    def of(self, row: int) -> list[BranchLength]:
        """The branches of a row; none where it is left out of training."""
        own = self.branches[self.starts[row] : self.starts[row + 1]]
        return [BranchLength(*branch) for branch in own.tolist()]

    def used(self) -> list[int]:
        """The rows that have branches, in order."""
        return np.flatnonzero(np.diff(self.starts)).tolist()


class LengthRecorder:
    """Collects the lengths of rows that are shown to it in order (`check_dataset(observe=recorder.add)`).

    Args:
        collator: The collator of the run: what it drops has no branches, what it truncates is as short as it makes it.
    """

    def __init__(self, collator: AlignCollator) -> None:
        self.collator = collator
        self._counts: list[int] = []
        self._branches: list[BranchLength] = []
        self._referenced: list[bool] = []

    def add(self, row: Row, views: Sequence[EncodedView]) -> None:
        """The next row.

        Raises:
            DataError: If a view is longer than `max_length` and may neither be dropped nor shortened, or the row is
                read for features of its images alone.
        """
        if not views and self.collator.rows.needs(row).features:
            raise DataError(
                f"{row.name} has images and no text to measure, so it has no length: set per_device_train_batch_size "
                "in place of max_tokens_per_batch"
            )
        kept = self._kept(row, list(views))
        self._counts.append(len(kept))
        self._referenced.append(self.collator.rows.needs(row).reference)
        self._branches.extend(
            BranchLength(_number(view), len(view.prefix_ids), len(view.response_ids) - 1) for view in kept
        )

    def lengths(self) -> PackedLengths:
        """What was collected."""
        return PackedLengths(
            starts=np.concatenate([[0], np.cumsum(self._counts, dtype=np.int64)]),
            branches=np.array(self._branches, dtype=np.int64).reshape(-1, len(BranchLength._fields)),
            referenced=np.array(self._referenced, dtype=bool),
        )

    def _kept(self, row: Row, views: list[EncodedView]) -> list[EncodedView]:
        limit = self.collator.max_length
        if limit is None or max((view.length for view in views), default=0) <= limit:
            return views
        # The collator would count this row as dropped, which it is only while training.
        return [] if self.collator.on_overflow == "drop" else self.collator.fit(row, views) or []


def _number(view: EncodedView) -> int:
    """Of a prefix, as batches tell prefixes apart."""
    digest = hashlib.blake2b(repr((view.prefix, view.images)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
