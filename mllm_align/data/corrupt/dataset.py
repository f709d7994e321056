"""Rows with a contrast image that is made of their own one: the same draw for every reader, another each epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.utils.data

from mllm_align.data.corrupt.base import Corruption
from mllm_align.data.corrupt.drawn import DrawnImage, seed_of
from mllm_align.data.corrupt.kinds import corruption_from
from mllm_align.data.corrupt.swap import Swap
from mllm_align.data.errors import DataError
from mllm_align.data.loading import undecoded
from mllm_align.data.mixing import MixedDataset, MixedStream
from mllm_align.data.schema import Row, parse_row, row_name

FLAGS = ("redraw", "replace")


@dataclass(frozen=True)
class Draws:
    """What is drawn for the rows of a dataset.

    Args:
        corruption: What is done to an image.
        redraw: Whether it is drawn anew in every epoch.
        replace: Whether a contrast image that a row has already gives way; else it is an error.
        seed: Of the run.
    """

    corruption: Corruption | Swap
    redraw: bool = True
    replace: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses what is no corruption, and switches that are neither true nor false."""
        if not isinstance(self.corruption, Corruption | Swap):
            raise DataError(f"a corruption is an object such as Crop(), or its name, not {self.corruption!r}")
        for name in FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise DataError(f"{name} must be true or false, not {getattr(self, name)!r}")

    @property
    def by_epoch(self) -> bool:
        """Whether an epoch has other images than the one before."""
        return self.redraw and self.corruption.random

    def __str__(self) -> str:
        if not self.corruption.random:
            return repr(self.corruption)
        return f"{self.corruption!r}, drawn {'anew in every epoch' if self.redraw else 'once'}"


class _Corrupted:
    """What the two kinds of datasets share."""

    def __init__(self, rows: Any, draws: Draws) -> None:
        self.rows: Any = undecoded(rows)
        self.draws = draws
        # In shared memory, because workers that stay have copies of the dataset.
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    @property
    def by_epoch(self) -> bool:
        """Whether rows are asked for as `(index, epoch)` while training."""
        return self.draws.by_epoch

    def set_epoch(self, epoch: int) -> None:
        """Which epoch is iterated over next; also for the rows, where they are shuffled by epoch."""
        self._epoch.fill_(epoch)
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)

    def _with_contrast(self, raw: Mapping[str, Any], index: int | None, epoch: int) -> dict[str, Any]:
        row = self._checked(raw, index)
        name = row.id if row.id is not None else index
        if name is None:  # of a stream
            name = [row.messages, sorted(row.responses.items())]
        where = f"{row.name}, contrast image"
        made = [
            self._make(value, index, seed_of(self.draws.seed, name, epoch if self.by_epoch else 0, place), where)
            for place, value in enumerate(row.images)
        ]
        single = raw.get("contrast_index")
        if single is None:
            return {**raw, "contrast_image": made if len(made) > 1 else made[0]}
        # An index that makes no sense is refused where rows are parsed, which asks for a contrast image first.
        return {**raw, "contrast_image": made[single if single in range(len(made)) else 0]}

    def _checked(self, raw: Mapping[str, Any], index: int | None) -> Row:
        if not self.draws.replace and isinstance(raw, Mapping) and raw.get("contrast_image") is not None:
            raise DataError(
                f"{row_name(raw, index)}: has a 'contrast_image' already, and another one would be made of its own "
                "image: leave 'corrupt' out to use what is there, or set replace=True"
            )
        row = parse_row({**raw, "contrast_image": None} if isinstance(raw, Mapping) else raw, index)
        if not row.images:
            raise DataError(
                f"{row.name}: no image of which a contrast image could be made: leave the row out, or give rows of "
                "text alone as a source of their own, without 'corrupt'"
            )
        return row

    def _make(self, value: Any, index: int | None, seed: int, where: str) -> Any:
        if isinstance(self.draws.corruption, Swap):
            assert index is not None  # or `corrupted` had refused the stream
            return self.draws.corruption.pick(value, self.rows, index, np.random.default_rng(seed), where)
        return DrawnImage(value, self.draws.corruption, seed)


class CorruptedDataset(_Corrupted, torch.utils.data.Dataset):
    """Map-style rows with a `contrast_image` made of their own; see `corrupted`."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        """The row at an index as epoch 0 has it, or at `(index, epoch)`."""
        index, epoch = item if isinstance(item, tuple) else (item, 0)
        index = range(len(self))[index]
        return self._with_contrast(self.rows[index], index, epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All rows of the epoch that `set_epoch` named."""
        epoch = int(self._epoch)
        for index in range(len(self)):
            yield self[index, epoch]


class CorruptedStream(_Corrupted, torch.utils.data.IterableDataset):
    """Streamed rows with a `contrast_image` made of their own; see `corrupted`."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows of the epoch that `set_epoch` named."""
        epoch = int(self._epoch)
        for raw in self.rows:
            yield self._with_contrast(raw, None, epoch)


def corrupted(
    dataset: Any,
    corruption: Corruption | Swap | Mapping[str, Any] | str,
    *,
    redraw: bool = True,
    replace: bool = False,
) -> CorruptedDataset | CorruptedStream:
    """The same rows with a `contrast_image` that is made of their own image, for objectives that compare the two.

    What is made of an image is fixed by the seed of the run (`data_seed`), the row (its id; without one its place, in
    a stream its text) and the epoch: it does not depend on workers, processes, or whether a run was interrupted.
    Policy and reference see the same pixels. Of several images all are corrupted, or the one at `contrast_index`.
    Evaluation always sees what epoch 0 has.

    Args:
        dataset: Map-style rows or a stream, one source.
        corruption: Such as `Crop()`, or what `corruption_from` reads.
        redraw: Whether to draw anew in every epoch. Where something is computed once per image and kept
            (`precompute_ref_log_probs`, caches of images), the trainer draws once, and says so.
        replace: Whether a contrast image that a row has already gives way; else it is an error.

    Raises:
        DataError: If the corruption is unknown, a switch is neither true nor false, or a stream cannot have it.

    Example:
        >>> from mllm_align.data.corrupt import Crop, corrupted
        >>> rows = [{"image": "cat.jpg", "prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog."}]
        >>> corrupted(rows, Crop())[0]["contrast_image"].corruption
        Crop(scale=(0.01, 0.2), ratio=(0.75, 1.3333333333333333))
    """
    if isinstance(dataset, Mapping):
        raise DataError("corrupted() takes one dataset: wrap the source that needs contrast images, not all of them")
    chosen = corruption_from(corruption) if isinstance(corruption, Mapping | str) else corruption
    draws = Draws(chosen, redraw, replace)
    if hasattr(dataset, "__len__"):
        return CorruptedDataset(dataset, draws)
    if isinstance(chosen, Swap):
        raise DataError("'swap' looks for other rows, which a stream does not have at hand: load without streaming")
    return CorruptedStream(dataset, draws)


def draws_from(options: Mapping[str, Any]) -> Draws:
    """What a recipe says: the options of `corruption_from`, beside them `redraw` and `replace`.

    Raises:
        DataError: If the kind or an option is unknown, or a value makes no sense.
    """
    flags = {name: options[name] for name in FLAGS if name in options}
    return Draws(corruption_from({name: value for name, value in options.items() if name not in FLAGS}), **flags)


def draws_by_source(dataset: Any) -> dict[str, Draws]:
    """What is drawn for each source of a dataset; a dataset that is no mix has the name ""."""
    parts = dataset.parts if isinstance(dataset, MixedDataset | MixedStream) else {"": dataset}
    return {name: part.draws for name, part in parts.items() if isinstance(part, _Corrupted)}


def with_draws(dataset: Any, change: Callable[[Draws], Draws]) -> Any:
    """A dataset whose corrupted sources draw otherwise; the one that was given stays as it is."""
    if isinstance(dataset, CorruptedDataset | CorruptedStream):
        return type(dataset)(dataset.rows, change(dataset.draws))
    if isinstance(dataset, MixedDataset | MixedStream) and draws_by_source(dataset):
        return dataset.with_parts({name: with_draws(part, change) for name, part in dataset.parts.items()})
    return dataset


def seeded(draws: Draws, seed: int, *, once: bool) -> Draws:
    """The draws of a run, for all its epochs where `once` is set."""
    return replace(draws, seed=seed, redraw=draws.redraw and not once)
