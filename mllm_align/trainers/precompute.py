"""The reference, computed once: every row scored before training, for all ranks, epochs and later runs."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from mllm_align.contract import Batch, Signals
from mllm_align.signals import FrozenCopy, NamedAdapter, Reference, measure
from mllm_align.signals.cached_reference import CachedReference
from mllm_align.signals.features import scored_views

if TYPE_CHECKING:
    from mllm_align.trainers.trainer import AlignTrainer

logger = logging.getLogger(__name__)

# Work that a killed run loses at the most.
SHARD_SECONDS, SHARD_BRANCHES = 30.0, 8192


class ReferenceScorer:
    """Scores datasets under the live reference, as far as they are not on disk yet.

    Args:
        trainer: Its model, collator, settings and autocast are used: what is stored is what training would measure.
        live: The reference that is scored; forgotten by `let_go`.
        cached: Where the results go.
    """

    def __init__(self, trainer: AlignTrainer, live: Reference, cached: CachedReference) -> None:
        self.model: Any = trainer.model
        self.live: Reference | None = live
        self.cached = cached
        self.collator: Any = copy.copy(trainer.data_collator)  # it counts the rows it drops, as training does again
        self.args = trainer.args
        # A frozen copy may see with other weights than the policy, whose image tokens are kept.
        self.options = trainer.options
        if isinstance(live, FrozenCopy):
            self.options = replace(trainer.options, feature_cache=None, encoder_cache=None)
        self.scored = scored_views(trainer.objective.needs)
        self.autocast = trainer.accelerator.autocast
        self._pending: dict[bytes, Tensor] = {}
        self._since = 0.0
        self._seen: list[Any] = []

    def score(self, dataset: Any, name: str) -> None:
        """Makes sure that all rows of a dataset are on disk; ranks share the work and the result.

        What is finished stays, also if this is interrupted. A dataset object is read once.

        Raises:
            ValueError: If ranks do not see the same cache folder.
        """
        if dataset is None or self.live is None or any(dataset is seen for seen in self._seen):
            return
        state = PartialState()
        size = self.args.precompute_ref_batch_size or self.args.per_device_eval_batch_size
        batches = [range(start, min(start + size, len(dataset))) for start in range(0, len(dataset), size)]
        own = batches[state.process_index :: state.num_processes]
        hidden = self.args.disable_tqdm or not state.is_main_process
        computed, total = 0, sum(map(len, own))
        try:
            with tqdm(total=total, desc=f"reference, {name}", unit="row", disable=hidden) as bar:
                for rows, found in zip(own, self._loader(dataset, own), strict=True):
                    computed += self._score_batch(found["batch"])
                    bar.update(len(rows))
        finally:
            self._write()
        self._wait_for_all()
        self._seen.append(dataset)
        logger.info("reference of %s: %d responses computed, the others were in %s", name, computed, self._folder)

    def let_go(self) -> None:
        """Before training: from here on, rows that were not scored are an error under a reference that is not kept.

        A frozen copy gives its memory back; an adapter that trains will not be what was scored.
        """
        if isinstance(self.live, NamedAdapter) and self.live.name in self.model.active_adapters:
            self.live = None
        if isinstance(self.live, FrozenCopy):
            if not getattr(self.live.model, "is_quantized", False):
                self.live.model.to("cpu")
            self.live = None

    @property
    def _folder(self) -> Any:
        return self.cached.store.files.folder

    def _loader(self, dataset: Any, own: Sequence[range]) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_sampler=[list(rows) for rows in own],
            collate_fn=self.collator,
            num_workers=self.args.dataloader_num_workers or 0,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            pin_memory=bool(self.args.dataloader_pin_memory) and torch.cuda.is_available(),
        )

    def _score_batch(self, batch: Batch) -> int:
        """Scores the branches of a batch that are not there yet; returns how many."""
        missing = self.cached.missing(batch, self.scored)
        absent = {index: key for index, key in missing.items() if key not in self._pending}
        if not absent:
            return 0
        if not self._pending:
            self._since = time.monotonic()
        # The same content may occur twice in a batch; each key is scored once.
        keys = {key: index for index, key in absent.items()}
        wanted = replace(batch, branches=tuple(batch.branches[index] for index in keys.values()))
        signals = self._measure(wanted)
        for key, values in zip(keys, _per_branch(wanted, signals), strict=True):
            self._pending[key] = values
        if len(self._pending) >= SHARD_BRANCHES or time.monotonic() - self._since >= SHARD_SECONDS:
            self._write()
        return len(keys)

    def _measure(self, batch: Batch) -> Signals:
        assert self.live is not None
        with torch.no_grad(), self.autocast(), self.live.on(self.model) as reference, _evaluating(reference):
            signals, _ = measure(reference, batch.to(self.args.device), tokens=True, options=self.options)
        return signals

    def _write(self) -> None:
        pending, self._pending = self._pending, {}
        self.cached.store.add(pending)

    def _wait_for_all(self) -> None:
        state = PartialState()
        state.wait_for_everyone()
        self.cached.store.refresh()
        if state.num_processes > 1:
            sizes = gather_object([len(self.cached.store)])
            if len(set(sizes)) > 1:
                raise ValueError(
                    f"the ranks see different files in {self._folder} ({sizes} entries): set cache_dir to a folder "
                    "that all of them share"
                )


def _per_branch(batch: Batch, signals: Signals) -> list[Tensor]:
    """(R,) log-probabilities of each branch, on the host."""
    host = {view: (ragged.values.cpu(), ragged.row.cpu()) for view, ragged in signals.token_logps.items()}
    pieces = []
    for branch in batch.branches:
        values, row = host[branch.view]
        pieces.append(values[row == branch.row])
    return pieces


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
