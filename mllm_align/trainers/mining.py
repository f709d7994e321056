"""What the objective's embeddings are now: of every training row, measured with the weights as they are."""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from mllm_align.contract import Embedding, Needs, Signals
from mllm_align.data.encode import RowEncoder
from mllm_align.encoding.files import embedding_of
from mllm_align.encoding.vectors import entry_vectors, evaluating, vector_width
from mllm_align.signals import measure
from mllm_align.trainers import heads
from mllm_align.trainers.gather import gather_on_host
from mllm_align.trainers.neighbourhood import near_rows

if TYPE_CHECKING:
    from mllm_align.trainers.trainer import AlignTrainer

SIDES = ("image", "text")


def mined_neighbours(trainer: AlignTrainer, epoch: int, count: int) -> np.ndarray:
    """Of every training row those whose texts are most similar to its image, by the weights as they are.

    A collective: each process measures its share of the rows, compares it with the texts of all, and is told what the
    others found. No random number is drawn, and nothing of the run is changed. In memory are the text vectors of all
    rows.

    Args:
        trainer: Its model, objective, data and settings.
        epoch: Of which rows that change from epoch to epoch are measured.
        count: k.

    Returns:
        (N, k) int64, nearest first; -1 where there are not as many.
    """
    num_rows = len(trainer.train_dataset)  # type: ignore[arg-type]
    args = trainer.args
    own = np.arange(args.process_index, num_rows, args.world_size)
    images, texts = measured_sides(trainer, own, epoch)
    told = gather_on_host((own, texts))
    vectors = np.empty((num_rows, texts.shape[1]), np.float32)
    for rows, found in told:
        vectors[rows] = found
    there = np.flatnonzero(np.isfinite(vectors).all(1))
    asks = np.isfinite(images).all(1)
    return near_rows(num_rows, own[asks], images[asks], there, vectors[there], count, args.device)


def measured_sides(trainer: AlignTrainer, rows: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of some training rows.

    Returns:
        (n, d) float32 each of images and texts, of length 1; NaN where a row has none. Of several texts of a row it is
        the first.
    """
    embedding = embedding_of(trainer.objective)
    assert embedding is not None  # else the sampler was refused
    args = trainer.args
    dated = getattr(trainer.train_dataset, "by_epoch", False)
    size = args.per_device_eval_batch_size
    parts = [rows[start : start + size].tolist() for start in range(0, len(rows), size)]
    loader = DataLoader(
        trainer.train_dataset,  # type: ignore[arg-type]
        batch_sampler=[[(row, epoch) for row in part] if dated else part for part in parts],  # type: ignore[arg-type]
        collate_fn=_collator(trainer, embedding),
        num_workers=args.dataloader_num_workers or 0,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        pin_memory=bool(args.dataloader_pin_memory) and torch.cuda.is_available(),
        generator=torch.Generator(),  # else a number would be drawn from the run's own
    )
    found: list[list[Tensor]] = []
    widths = {side: vector_width(trainer.model, embedding.heads.get(side)) for side in SIDES}
    hidden = args.disable_tqdm or args.process_index > 0
    with (
        torch.no_grad(),
        evaluating(trainer.model),
        heads.mode(trainer.objective, training=False),
        tqdm(total=len(rows), desc="mining batches", unit="row", disable=hidden) as bar,
    ):
        for part, entry in zip(parts, loader, strict=True):
            batch = entry["batch"].to(args.device)
            features = tuple(embedding.features[side] for side in SIDES)
            with trainer.accelerator.autocast():
                signals, _ = measure(trainer.model, batch, features=features, scored=(), options=trainer.options)
            found.append([vectors_of(embedding, side, signals, widths[side]).float().cpu() for side in SIDES])
            bar.update(len(part))
    images, texts = (torch.cat(side).numpy() for side in zip(*found, strict=True))
    return images, texts


def vectors_of(embedding: Embedding, side: str, signals: Signals, width: int) -> Tensor:
    """(B, d) vectors of length 1 of one side of a batch of B rows; NaN where a row has none.

    Args:
        embedding: What is measured, and its heads.
        side: "image" or "text".
        signals: What was measured.
        width: d.
    """
    feature = embedding.features[side]
    size = len(signals.sources)
    if not signals.host_feature_rows.get(feature.name):
        return torch.full((size, width), torch.nan)
    rows, vectors = entry_vectors(signals, feature, embedding.heads.get(side))
    first = {row: place for place, row in reversed(list(enumerate(rows)))}
    table = torch.full((size, width), torch.nan, dtype=vectors.dtype, device=vectors.device)
    table[list(first)] = F.normalize(vectors[list(first.values())], dim=1)
    return table


def _collator(trainer: AlignTrainer, embedding: Embedding) -> Any:
    """The run's own, which reads nothing but what is embedded, and leaves no row out."""
    collator: Any = copy.copy(trainer.data_collator)
    needs = Needs(features=tuple(embedding.features[side] for side in SIDES))
    collator.rows = RowEncoder(collator.processor, functools.partial(_same, needs), collator.rows.replace)
    if collator.on_overflow == "drop":
        collator.max_length = None
    return collator


def _same(needs: Needs, source: str) -> Needs:
    return needs
