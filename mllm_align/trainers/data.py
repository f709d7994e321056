"""The data a trainer is given: one dataset or several sources, checked before anything trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from mllm_align.contract import Objective
from mllm_align.data.check import check_dataset
from mllm_align.data.collator import AlignCollator
from mllm_align.data.corrupt.dataset import CorruptedDataset, CorruptedStream
from mllm_align.data.lengths import LengthRecorder
from mllm_align.data.loading import undecoded
from mllm_align.data.mixing import MixedDataset, mix_sources
from mllm_align.data.schema import DEFAULT_SOURCE, DataError
from mllm_align.data.shares import Shares
from mllm_align.trainers.setup import check_sources


def join_sources(dataset: Any, shares: Shares | None = None) -> Any:
    """Training data: a dict of sources becomes one mixed dataset whose rows tell their source.

    Args:
        dataset: Of a run, or None.
        shares: What is taken of each source; all by default.

    Raises:
        DataError: If there are shares but no sources, or not those that the shares name.
    """
    if isinstance(dataset, Mapping):
        return mix_sources(dataset, shares)
    if dataset is not None and shares is not None and (shares.draws or shares.caps):
        raise DataError(
            "source_weights, source_caps and epoch_rows are for named sources: give train_dataset={'name': dataset, "
            "...}, or leave them out"
        )
    return undecoded(dataset)


def label_sources(dataset: Any) -> Any:
    """Evaluation data: the datasets of a dict stay apart, their rows tell their source."""
    if isinstance(dataset, Mapping):
        return {name: mix_sources({name: part}) for name, part in dataset.items()}
    return undecoded(dataset)


def rows_per_source(dataset: Any) -> dict[str, int | None]:
    """Rows of each source after caps; None in place of the number for streams. A stream of unknown sources is one
    "default"."""
    if isinstance(dataset, MixedDataset):
        return dict(dataset.sizes)
    parts = getattr(dataset, "parts", None)
    if parts is not None:
        return {name: len(part) if hasattr(part, "__len__") else None for name, part in parts.items()}
    if dataset is None:
        return {}
    if isinstance(dataset, CorruptedDataset | CorruptedStream):
        return rows_per_source(dataset.rows)
    columns = getattr(dataset, "column_names", None)
    if not hasattr(dataset, "__len__"):
        return {DEFAULT_SOURCE: None}
    if columns is not None:
        return dict(Counter(dataset["source"])) if "source" in columns else {DEFAULT_SOURCE: len(dataset)}
    return dict(Counter(row.get("source") or DEFAULT_SOURCE for row in dataset))


def refuse_bad_data(
    objective: Objective,
    collator: AlignCollator,
    train: Any,
    evaluation: Any,
    *,
    check_rows: bool,
    progress: bool,
    lengths: LengthRecorder | None = None,
) -> None:
    """Refuses data that the objective cannot use.

    Args:
        objective: Its sources must be there, and the other way round.
        collator: Of the run.
        train: Training data after `join_sources`, or None.
        evaluation: Evaluation data after `label_sources`, or None.
        check_rows: Whether to read the rows themselves.
        progress: Whether to show a progress bar.
        lengths: Is shown every training row on the main process; then the training data is read in any case.

    Raises:
        ValueError: If a source and the objective do not know each other.
        DataError: For the first row that cannot be used, on every rank.
    """
    sources = rows_per_source(train)
    if train is not None and (None not in sources.values() or hasattr(train, "parts")):
        check_sources(objective, list(sources))
    found = ""
    if (check_rows or lengths is not None) and PartialState().is_main_process:
        try:
            for name, dataset in named_datasets(train, evaluation if check_rows else None):
                _check(name, dataset, collator, progress, lengths if dataset is train else None)
        except DataError as error:
            found = str(error)
    message = broadcast_object_list([found])[0]
    if message:
        raise DataError(message)


def named_datasets(train: Any, evaluation: Any) -> Iterator[tuple[str, Any]]:
    """Every dataset of a run with the name that messages use."""
    if train is not None:
        yield "train_dataset", train
    parts = evaluation if isinstance(evaluation, Mapping) else {"": evaluation}
    for name, dataset in parts.items():
        if dataset is not None:
            yield f"eval_dataset[{name!r}]" if name else "eval_dataset", dataset


def _check(name: str, dataset: Any, collator: AlignCollator, progress: bool, lengths: LengthRecorder | None) -> None:
    try:
        check_dataset(dataset, collator, progress=progress, observe=lengths.add if lengths is not None else None)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
