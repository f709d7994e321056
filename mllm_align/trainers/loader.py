"""How rows come to the step: batches by tokens where asked for, collated in workers, in page-locked memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from accelerate import PartialState
from accelerate.data_loader import DataLoaderShard
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader, IterableDataset
from transformers.trainer_utils import seed_worker

from mllm_align.data.collator import AlignCollator
from mllm_align.data.lengths import LengthRecorder
from mllm_align.data.schema import DataError, row_name
from mllm_align.families import family_of, unwrap
from mllm_align.signals import EngineOptions
from mllm_align.signals.limits import can_share_prefixes
from mllm_align.trainers.clusters import ClusterSampler, cluster_sampler
from mllm_align.trainers.config import AlignConfig
from mllm_align.trainers.mined_batches import MinedBatches, bind, mined_sampler
from mllm_align.trainers.sampler import EpochBatches, PaddedTokens, TokenBudgetSampler
from mllm_align.trainers.shares import ShareSampler, share_sampler

if TYPE_CHECKING:
    from mllm_align.trainers.trainer import AlignTrainer

BatchSampler: TypeAlias = TokenBudgetSampler | ClusterSampler | ShareSampler | MinedBatches

# What a loader that is made anew must have from the one before.
KEPT = (
    "collate_fn",
    "num_workers",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
    "in_order",
)


class BatchLoader(DataLoader[Any]):
    """A loader of batches that a sampler of ours draws; it is sharded already."""

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


def length_recorder(args: AlignConfig, collator: AlignCollator, dataset: Any) -> LengthRecorder | None:
    """What collects the rows' lengths while they are checked; None where batches are filled by rows.

    Raises:
        ValueError: If the data or the order of rows does not go with batches filled by tokens.
    """
    if args.max_tokens_per_batch is None or dataset is None:
        return None
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            "max_tokens_per_batch needs the length of every row beforehand, which a stream does not have: load the "
            "data without streaming, or set per_device_train_batch_size instead"
        )
    if args.train_sampling_strategy not in ("random", "sequential"):
        raise ValueError(
            f"train_sampling_strategy {args.train_sampling_strategy!r} does not go with max_tokens_per_batch, which "
            "puts rows of similar length together itself: leave it at 'random', or use 'sequential'"
        )
    return LengthRecorder(collator)


def sampler_of(
    args: AlignConfig,
    recorder: LengthRecorder | None,
    dataset: Any,
    model: Any,
    options: EngineOptions,
    objective: Any,
) -> BatchSampler | None:
    """The sampler that mines, or goes by clusters, shares or tokens, as a run asks for; arguments and errors are those
    of each."""
    sampler = mined_sampler(args, dataset, objective) or cluster_sampler(args, dataset) or share_sampler(args, dataset)
    return sampler or budget_sampler(args, recorder, dataset, model, options)


def budget_sampler(
    args: AlignConfig, recorder: LengthRecorder | None, dataset: Any, model: Any, options: EngineOptions
) -> TokenBudgetSampler | None:
    """The sampler of a run; None where batches are filled by rows. A collective: every rank must call it.

    Args:
        args: Of the run.
        recorder: Has seen every row on the main process.
        dataset: The training data.
        model: The policy.
        options: How batches are run.

    Raises:
        DataError: If a row alone is over the budget.
        ValueError: If the rows do not make equally many batches for every rank.
    """
    if recorder is None or args.max_tokens_per_batch is None:
        return None
    own = recorder.lengths() if PartialState().is_main_process else None
    lengths = broadcast_object_list([own])[0]
    assert lengths is not None  # the main process's
    hf = unwrap(model)
    tokens = PaddedTokens(
        lengths,
        shared=options.packing == "auto" and can_share_prefixes(family_of(hf), hf)[0],
        least_fill=options.least_fill,
        max_tokens_per_forward=options.max_tokens_per_forward,
    )
    rows = lengths.used()
    _refuse_long_rows(tokens, rows, args.max_tokens_per_batch, dataset)
    return TokenBudgetSampler(
        tokens,
        rows,
        args.max_tokens_per_batch,
        seed=args.data_seed if args.data_seed is not None else args.seed,
        num_ranks=args.world_size,
        rank=args.process_index,
        shuffle=args.train_sampling_strategy == "random",
    )


def _refuse_long_rows(tokens: PaddedTokens, rows: list[int], budget: int, dataset: Any) -> None:
    sizes = {row: tokens([row]) for row in rows}
    over = [row for row in rows if sizes[row] > budget]
    if over:
        worst = max(over, key=sizes.__getitem__)
        raise DataError(
            f"train_dataset: {row_name(dataset[worst], worst)} alone has {sizes[worst]} tokens (prompts, images, "
            f"responses), more than max_tokens_per_batch={budget}, and {len(over)} of {len(rows)} rows are "
            f"too long: set it to {sizes[worst]} or more, lower max_pixels, or set max_length with on_overflow='drop'"
        )


def train_loader(
    trainer: AlignTrainer,
    sampler: BatchSampler | None,
    default: Callable[[], Any],
) -> Any:
    """The training loader: the sampler's batches, or what `transformers` makes where there is none.

    Args:
        trainer: Its dataset, collator and settings are used.
        sampler: Its batches are this rank's own, so accelerate must not shard them once more.
        default: Makes the loader of `transformers`.
    """
    args: Any = trainer.args
    trainer.teachers.compute(trainer.train_dataset, "train_dataset")
    bind(sampler, trainer)
    by_epoch = getattr(trainer.train_dataset, "by_epoch", False)
    with _workers_for(args, trainer.train_dataset):
        if sampler is None:
            return _seeded(_with_epochs(default(), by_epoch), args.seed)
        made = BatchLoader(
            trainer.train_dataset,  # type: ignore[arg-type]
            batch_sampler=EpochBatches(sampler, by_epoch),
            collate_fn=trainer.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            prefetch_factor=args.dataloader_prefetch_factor,
            in_order=args.dataloader_in_order,
            worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
        )
        return _seeded(made, args.seed)


def eval_loader(trainer: AlignTrainer, dataset: Any, default: Callable[[], Any]) -> Any:
    """A loader that shows every row once: ranks may get unequal numbers of batches, none is filled up."""
    evaluation: Any = trainer.eval_dataset
    named = evaluation[dataset] if isinstance(dataset, str) else dataset
    for part in named.values() if isinstance(named, dict) else (named,):
        trainer.teachers.compute(part, "eval_dataset")
    accelerator = trainer.accelerator
    even = accelerator.even_batches
    accelerator.even_batches = False
    try:
        with _workers_for(trainer.args, dataset):
            return _seeded(default(), trainer.args.seed)
    finally:
        accelerator.even_batches = even


def _with_epochs(loader: Any, by_epoch: bool) -> Any:
    """The loader of accelerate with batches that know their epoch; a stream knows its own."""
    if not isinstance(loader, DataLoaderShard) or isinstance(loader.dataset, IterableDataset):
        return loader
    base: Any = loader.base_dataloader
    return DataLoaderShard(
        base.dataset,
        device=loader.device,
        rng_types=loader.rng_types,
        synchronized_generator=loader.synchronized_generator,
        use_stateful_dataloader=loader.use_stateful_dataloader,
        _drop_last=loader._drop_last,
        _non_blocking=loader._non_blocking,
        batch_sampler=EpochBatches(base.batch_sampler, by_epoch),
        **{name: getattr(base, name) for name in KEPT},
    )


def _seeded(loader: Any, seed: int) -> Any:
    """The loader with a generator of its own for the seeds of workers.

    Else it would take them from torch's, though not in every epoch (workers that stay have theirs), and a resumed run
    would go on with other random numbers.
    """
    getattr(loader, "base_dataloader", loader).generator = torch.Generator().manual_seed(seed)
    return loader


@contextmanager
def _workers_for(args: Any, dataset: Any) -> Iterator[None]:
    """Settings of workers while a loader is made; a stream gets those alone that the user asked for.

    Each worker would read all of a stream that does not know how to share itself out.
    """
    stream = dataset is not None and not isinstance(dataset, str | dict) and not hasattr(dataset, "__len__")
    names = ("dataloader_num_workers", "dataloader_persistent_workers", "dataloader_prefetch_factor")
    before = {name: getattr(args, name) for name in names}
    if stream and args.workers_by_default:
        for name, value in zip(names, (0, False, None), strict=True):
            setattr(args, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(args, name, value)
