"""Batches of rows that are alike: hard negatives without a search."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Sampler

from mllm_align.data.loading import undecoded
from mllm_align.data.schema import DataError, row_name

if TYPE_CHECKING:
    from mllm_align.trainers.config import AlignConfig


class ClusterSampler(Sampler[list[int]]):
    """Yields this rank's batches of row numbers; those that all ranks have at one time are of one cluster.

    After MCL (2025, "Learning the Unlearned"), which draws each batch from one cluster of image features. What is left
    of a cluster, less than a batch of all ranks, is joined with what is left of others. No row comes twice in an
    epoch; where the rows that are left at the very end are fewer than ranks, they are left out of it.

    Args:
        labels: The cluster of each row.
        batch_size: Rows of a rank's batch.
        seed: Of the draws.
        num_ranks: Over how many processes the batches are spread.
        rank: Which of them this is.
        shuffle: Whether to draw; False takes clusters and rows as they come.

    Raises:
        ValueError: If there are fewer rows than ranks.
    """

    def __init__(
        self,
        labels: Sequence[Hashable],
        batch_size: int,
        *,
        seed: int = 0,
        num_ranks: int = 1,
        rank: int = 0,
        shuffle: bool = True,
    ) -> None:
        if len(labels) < num_ranks:
            raise ValueError(f"{len(labels)} rows are too few for {num_ranks} processes: each needs one at least")
        self.batch_size, self.seed, self.num_ranks, self.rank, self.shuffle = (
            batch_size,
            seed,
            num_ranks,
            rank,
            shuffle,
        )
        self.epoch = 0
        members: dict[Hashable, list[int]] = {}
        for row, label in enumerate(labels):
            members.setdefault(label, []).append(row)
        self.clusters = [np.array(rows) for rows in members.values()]

    def __len__(self) -> int:
        return len(self.batches(0))

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's batches of the epoch that `set_epoch` named."""
        for rows in self.batches(self.epoch):
            share = len(rows) / self.num_ranks
            yield rows[round(self.rank * share) : round((self.rank + 1) * share)]

    def set_epoch(self, epoch: int) -> None:
        """Which epoch is drawn next."""
        self.epoch = epoch

    def batches(self, epoch: int) -> list[list[int]]:
        """What all ranks have at one time, in order."""
        rng = np.random.default_rng((self.seed, epoch))
        size = self.batch_size * self.num_ranks
        whole: list[np.ndarray] = []
        left: list[np.ndarray] = []
        for place in rng.permutation(len(self.clusters)) if self.shuffle else range(len(self.clusters)):
            rows = rng.permutation(self.clusters[place]) if self.shuffle else self.clusters[place]
            cut = len(rows) // size * size
            whole += np.split(rows[:cut], cut // size) if cut else []
            left.append(rows[cut:])
        rest = np.concatenate(left)
        whole += [rest[start : start + size] for start in range(0, len(rest), size)]
        found = [rows.tolist() for rows in whole if len(rows) >= self.num_ranks]
        return [found[place] for place in rng.permutation(len(found))] if self.shuffle else found


def cluster_sampler(args: AlignConfig, dataset: Any) -> ClusterSampler | None:
    """The sampler of a run; None where batches are not filled by cluster.

    Args:
        args: Of the run.
        dataset: The training data.

    Raises:
        DataError: If a row has no such column.
        ValueError: If the data or another setting does not go with it.
    """
    if args.batch_column is None or dataset is None:
        return None
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            f"batch_column={args.batch_column!r} needs every row's value beforehand: load without streaming"
        )
    if args.train_sampling_strategy not in ("random", "sequential"):
        raise ValueError(
            f"train_sampling_strategy {args.train_sampling_strategy!r} does not go with batch_column, which says "
            "itself which rows make a batch: leave it at 'random', or use 'sequential'"
        )
    if args.dataloader_drop_last:
        raise ValueError("dataloader_drop_last does not go with batch_column: a batch of what is left is kept")
    if args.max_tokens_per_batch is not None:
        raise ValueError("batch_column and max_tokens_per_batch both say which rows make a batch: set one of them")
    rows: Any = undecoded(dataset)
    return ClusterSampler(
        [_label(rows[number], number, args.batch_column) for number in range(len(rows))],
        args.per_device_train_batch_size,
        seed=args.data_seed if args.data_seed is not None else args.seed,
        num_ranks=args.world_size,
        rank=args.process_index,
        shuffle=args.train_sampling_strategy == "random",
    )


def _label(row: Any, number: int, column: str) -> Hashable:
    label = row.get(column)
    if label is None:
        raise DataError(
            f"train_dataset: {row_name(row, number)} has nothing in column {column!r}, which batch_column names: add "
            "it (a cluster's number or name), or leave batch_column out"
        )
    return str(label)
