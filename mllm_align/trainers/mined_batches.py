"""Batches of a row and those that are near to it, mined anew every few epochs from what the model makes of them.

After Sample4Geo (Deuser et al., 2023, https://arxiv.org/abs/2303.11851), where the loss is a symmetric InfoNCE and
only the sampler changes: batches first of neighbours that are given (there by GPS), later of those that the model
itself finds similar. Numbers are ours, so this is no more than like it: a seed comes with 64 of its nearest 128 rows
that are left, one half the nearest, one half drawn; similarity is that of the seed's image and the others' texts.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import Sampler

from mllm_align.contract import needs_for
from mllm_align.data.loading import undecoded
from mllm_align.encoding.files import embedding_of
from mllm_align.trainers.data import rows_per_source
from mllm_align.trainers.filling import fill_batches, num_batches
from mllm_align.trainers.mining import SIDES, mined_neighbours
from mllm_align.trainers.neighbourhood import Neighbourhood, given_neighbourhood, nowhere, row_keys

if TYPE_CHECKING:
    from mllm_align.trainers.config import AlignConfig
    from mllm_align.trainers.trainer import AlignTrainer

logger = logging.getLogger(__name__)

MINED_FILE = "mined_batches.safetensors"
MODEL = "model"  # what `mine_batches_from` says for the model as it is when training begins
WITHIN = 2  # a seed's neighbours are those of the nearest so many times as many


class MinedBatches(Sampler[list[int]]):
    """Yields this rank's batches of row numbers; those that all ranks have at one time are near to one another.

    No row comes twice in an epoch and none is left out. Batches have equally many rows, within one. All ranks have the
    same batches and take a share of each; a run that is resumed has those that it would have had.

    Args:
        keys: (N,) rows of one key never come in one batch.
        batch_size: Rows of a rank's batch at the most.
        first: Which rows are near before any were mined; None to mine from the first epoch on.
        every: Epochs after which batches are mined anew; None for never, which `first` must then do without.
        per_seed: Neighbours that come with a row.
        seed: Of the draws.
        num_ranks: Over how many processes the batches are spread.
        rank: Which of them this is.

    Attributes:
        miner: Given the epoch and how many, which rows are near by now (a collective).

    Raises:
        ValueError: If there would be batches of fewer rows than ranks.
    """

    def __init__(
        self,
        keys: np.ndarray,
        batch_size: int,
        *,
        first: Neighbourhood | None,
        every: int | None,
        per_seed: int,
        seed: int = 0,
        num_ranks: int = 1,
        rank: int = 0,
    ) -> None:
        self.keys, self.size = keys, batch_size * num_ranks
        self.first, self.every, self.per_seed = first, every, per_seed
        self.seed, self.num_ranks, self.rank = seed, num_ranks, rank
        self.miner: Callable[[int, int], np.ndarray] | None = None
        self.epoch = 0
        self.count = num_batches(keys, self.size)
        if len(keys) // max(self.count, 1) < num_ranks:
            most = int(np.bincount(keys).max(initial=0))
            raise ValueError(
                f"{len(keys)} rows make {self.count} batches, of fewer rows than {num_ranks} processes: up to {most} "
                "rows are of one picture (or of one value of mine_batches_id), and no two of them come in one batch"
            )
        self._given: np.ndarray | None = None
        # The last batches that were mined, of all epochs until the next time.
        self._mined: tuple[int, list[list[np.ndarray]]] | None = None

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's batches of the epoch that `set_epoch` named; the first of an epoch may be a collective."""
        for rows in self.batches(self.epoch):
            share = len(rows) / self.num_ranks
            yield rows[round(self.rank * share) : round((self.rank + 1) * share)].tolist()

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next."""
        self.epoch = epoch

    def batches(self, epoch: int) -> list[np.ndarray]:
        """What all ranks have at one time, in order. Where batches are mined at this epoch, a collective.

        Raises:
            ValueError: If they were to be mined at an earlier epoch, with weights that are no longer there.
        """
        begin = epoch - epoch % self._period if self.every is not None else 0
        if begin == 0 and self.first is not None:
            if self._given is None:
                self._given = self.first(WITHIN * self.per_seed)
            return self._filled(self._given, epoch)
        if self._mined is None or self._mined[0] != begin:
            if epoch != begin or self.miner is None:
                raise ValueError(
                    f"batches of epoch {epoch} are mined at the beginning of epoch {begin}, from weights that are not "
                    "there now: resume from a checkpoint of this run"
                )
            near = self.miner(epoch, WITHIN * self.per_seed)
            # All at once: neighbours need not be kept, and a checkpoint holds row numbers alone.
            self._mined = begin, [self._filled(near, begin + n) for n in range(self._period)]
        return self._mined[1][epoch - begin]

    @property
    def _period(self) -> int:
        return self.every or 1

    def _filled(self, near: np.ndarray, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng((self.seed, epoch))
        return fill_batches(near, self.keys, self.size, self.per_seed, rng)

    def save(self, folder: str) -> None:
        """Writes what was mined last beside a checkpoint, or that nothing was."""
        begin, epochs = self._mined or (-1, [])
        sizes = [[len(rows) for rows in batches] for batches in epochs]
        tensors = {
            "rows": torch.tensor(np.array([np.concatenate(batches) for batches in epochs], np.int64)),
            "sizes": torch.tensor(sizes, dtype=torch.int64),
            "keys": torch.from_numpy(self.keys.copy()),
        }
        save_file(tensors, Path(folder) / MINED_FILE, {"begin": str(begin), "batches": str(self.count)})

    def load(self, folder: str) -> None:
        """Restores what `save` wrote.

        Raises:
            ValueError: If the checkpoint has no such file, or one of other rows or batches.
        """
        path = Path(folder) / MINED_FILE
        if not path.is_file():
            raise ValueError(
                f"the checkpoint in {folder!r} was made without mined batches: leave mine_batches_every and "
                "mine_batches_from out, or begin anew"
            )
        with safe_open(path, framework="pt") as file:
            told = file.metadata()
            rows, sizes, keys = (file.get_tensor(name).numpy() for name in ("rows", "sizes", "keys"))
        epochs = self._period
        same = np.array_equal(keys, self.keys) and told["batches"] == str(self.count)
        if not same or (len(rows) and (len(rows) != epochs or int(told["begin"]) % epochs)):
            raise ValueError(
                f"the batches in {folder!r} were mined for other rows, batch sizes or processes, or at other epochs "
                "(mine_batches_every): resume with what the run began with"
            )
        split = [np.split(own, np.cumsum(cut)[:-1]) for own, cut in zip(rows, sizes, strict=True)]
        self._mined = (int(told["begin"]), split) if len(rows) else None


def mined_sampler(args: AlignConfig, dataset: Any, objective: Any) -> MinedBatches | None:
    """The sampler of a run; None where batches are not mined.

    Args:
        args: Of the run.
        dataset: The training data.
        objective: Of the run.

    Raises:
        DataError: If the data does not tell which rows are near.
        ValueError: If the data, the objective or another setting does not go with it.
    """
    if not _wanted(args) or dataset is None:
        return None
    _refuse_others(args, dataset)
    if args.mine_batches_every is not None or args.mine_batches_from == MODEL:
        _refuse_unmeasured(args, objective, dataset)
    rows: Any = undecoded(dataset)
    seed = args.data_seed if args.data_seed is not None else args.seed
    if args.mine_batches_from is None:
        first: Neighbourhood | None = nowhere(len(rows))
    elif args.mine_batches_from == MODEL:
        first = None
    else:
        first = given_neighbourhood(
            args.mine_batches_from, rows, seed, args.process_index, args.world_size, args.device
        )
    made = MinedBatches(
        row_keys(rows, args.mine_batches_id),
        args.per_device_train_batch_size,
        first=first,
        every=args.mine_batches_every,
        per_seed=args.mine_batches_neighbours,
        seed=seed,
        num_ranks=args.world_size,
        rank=args.process_index,
    )
    if args.process_index == 0 and made.count > 1 and len(rows) <= made.count * made.size // 2:
        logger.warning(
            "mined batches have %.1f rows in place of %d: %d rows are of one picture (or of one value of "
            "mine_batches_id), and no two of them come in one batch. Leave most of them out, or name another column",
            len(rows) / made.count,
            made.size,
            made.count,
        )
    return made


def bind(sampler: Any, trainer: AlignTrainer) -> None:
    """Lets a sampler that mines ask the trainer's model; any other stays as it is."""
    if isinstance(sampler, MinedBatches):
        sampler.miner = functools.partial(mined_neighbours, trainer)


def load_mined(sampler: Any, folder: str) -> None:
    """Restores what was mined before a checkpoint; of any other sampler there is nothing."""
    if isinstance(sampler, MinedBatches):
        sampler.load(folder)


def save_mined(sampler: Any, folder: str) -> None:
    """Writes what was mined beside a checkpoint; of any other sampler nothing."""
    if isinstance(sampler, MinedBatches):
        sampler.save(folder)


def _wanted(args: AlignConfig) -> bool:
    wanted = args.mine_batches_every is not None or args.mine_batches_from is not None
    if not wanted and args.mine_batches_id is not None:
        raise ValueError("mine_batches_id tells rows apart in mined batches: set mine_batches_every or leave it out")
    return wanted


def _refuse_others(args: AlignConfig, dataset: Any) -> None:
    name = "mine_batches_every" if args.mine_batches_every is not None else "mine_batches_from"
    if not hasattr(dataset, "__len__"):
        raise ValueError(f"{name} compares every row with every other: load the training data without streaming")
    for other in ("batch_column", "max_tokens_per_batch"):
        if getattr(args, other) is not None:
            raise ValueError(f"{name} and {other} both say which rows make a batch: set one of them")
    if args.shares.draws:
        raise ValueError(f"{name} takes every row once an epoch: leave source_weights, epoch_rows and redraw_caps out")
    if args.train_sampling_strategy != "random":
        raise ValueError(
            f"train_sampling_strategy {args.train_sampling_strategy!r} does not go with {name}, which says itself "
            "which rows make a batch: leave it at 'random'"
        )
    if args.dataloader_drop_last:
        raise ValueError(f"dataloader_drop_last does not go with {name}: every row is used, in batches of one size")


def _refuse_unmeasured(args: AlignConfig, objective: Any, dataset: Any) -> None:
    if args.mine_batches_every is None:
        raise ValueError(
            f"mine_batches_from={MODEL!r} asks the model when training begins: say with mine_batches_every after how "
            "many epochs it is asked again"
        )
    embedding = embedding_of(objective)
    what = f"{type(objective).__name__} embeds nothing that rows could be compared by"
    if embedding is None or not set(SIDES) <= set(embedding.features):
        raise ValueError(
            f"mine_batches_every compares images with texts as the objective embeds them, but {what}: use one that "
            "contrasts whole images and texts, or give mine_batches_from alone"
        )
    wanted = {embedding.features[side] for side in SIDES}
    for source in rows_per_source(dataset):
        if not wanted <= set(needs_for(objective, source).features):
            raise ValueError(
                f"mine_batches_every compares all rows, but of source {source!r} the objective embeds no images and "
                "texts: train on it in a run of its own, or give mine_batches_from alone"
            )
    if args.deepspeed:
        raise ValueError(
            "mine_batches_every lets each process measure its share of the rows by itself, which deepspeed may "
            "not: use DDP, or give mine_batches_from alone"
        )
    every = args.mine_batches_every
    if args.mine_batches_from is None and args.max_steps < 0 and args.num_train_epochs <= every:
        raise ValueError(
            f"mine_batches_every={every} mines nothing in {args.num_train_epochs:g} epochs, before which batches are "
            f"random: mine more often, or set mine_batches_from ({MODEL!r}, a column, or a file of vectors)"
        )
