"""One stage of tuning a tower: contrast of images with texts whose embeddings are known."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import seed_worker

from mllm_align.contract import Ragged, Signals
from mllm_align.trainers.clusters import ClusterSampler
from mllm_align.trainers.gather import over_ranks
from mllm_align.trainers.loader import BatchLoader
from mllm_align.trainers.tower.config import TowerConfig
from mllm_align.trainers.tower.dual import Dual, ImageSide
from mllm_align.trainers.tower.rows import CaptionedImages, negatives

logger = logging.getLogger(__name__)

# Of images (B, d), texts (B, d), negatives (B, B) bool, scale and bias: (B,) losses.
PairLoss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]


class Collator:
    """Pictures as the tower reads them, with the embeddings of their texts.

    Args:
        dual: Says how images are read.
        rows: Say which text a row has.
        texts: (T, d) unit vectors of `rows.texts`; may be memory-mapped.
    """

    def __init__(self, dual: Dual, rows: CaptionedImages, texts: np.ndarray) -> None:
        self.reader, self.text, self.texts = dual.reader(), rows.text, texts

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`inputs` of the tower, `texts` (B, d), and `rows` (a list, on the host)."""
        numbers = [item["row"] for item in items]
        return {
            "inputs": self.reader([item["image"] for item in items]),
            "texts": torch.from_numpy(np.array(self.texts[self.text[numbers]], dtype=np.float32)),
            "rows": numbers,
        }


class TowerTrainer(Trainer):
    """Trains the image side of a dual encoder against the fixed texts, negatives from the rows' own clusters.

    Negatives are those of all processes' batches, and the gradients those of one process with that batch. Rows that
    have a caption or a picture in common are not each other's negatives. Batches come from one cluster each; what is
    left of the clusters shares batches at the end, where rows of other clusters are not negatives either: so the loss
    is that of MCL, with D_ij = 1 where i and j are of one cluster of all earlier stages. Accumulation adds no
    negatives.

    Args:
        model: The image side.
        args: Settings.
        loss: What it minimises the mean of, such as `objectives.pair_losses.softmax_pairs`.
        rows: To train on.
        collator: Of these rows.
        clusters: (N,) int64, of each row; None for one cluster of all.
        **others: Of `transformers.Trainer`.
    """

    def __init__(
        self,
        model: ImageSide,
        args: TowerConfig,
        loss: PairLoss,
        rows: CaptionedImages,
        collator: Collator,
        clusters: np.ndarray | None = None,
        **others: Any,
    ) -> None:
        if args.n_gpu > 1:
            logger.warning("one of %d GPUs is used; start with `accelerate launch` for all of them", args.n_gpu)
            args._n_gpu = 1
        super().__init__(model, args, train_dataset=rows, data_collator=collator, **others)
        self.loss, self.rows = loss, rows
        self.clusters = np.zeros(len(rows), dtype=np.int64) if clusters is None else clusters
        self._seen: list[tuple[Tensor, float]] = []

    def get_train_dataloader(self) -> Any:
        """Batches of one cluster each, this rank's part of them."""
        args: Any = self.args
        sampler = ClusterSampler(
            self.clusters.tolist(),
            args.per_device_train_batch_size,
            seed=args.data_seed if args.data_seed is not None else args.seed,
            num_ranks=args.world_size,
            rank=args.process_index,
        )
        return BatchLoader(
            self.rows,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
            generator=torch.Generator().manual_seed(args.seed),
        )

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over the rows of all processes."""
        images, scale, bias = model(**inputs["inputs"])
        vectors, texts, rows = joined_pairs(images, inputs["texts"], inputs["rows"])
        allowed = negatives([self.rows.text[rows], self.rows.picture[rows]], self.clusters[rows])
        negative = torch.from_numpy(allowed).to(images.device)
        loss = self.loss(vectors, texts, negative, scale, bias).mean()
        with torch.no_grad():
            cosines = (vectors @ texts.T).masked_fill(~negative, -2.0)
            cosines.fill_diagonal_(-2.0)
            right = (vectors * texts).sum(1) > cosines.amax(1)
            self._seen.append((right.float().mean(), float(allowed.sum(1).mean())))
        return (loss, {"images": vectors}) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds how often the own text was the nearest among the negatives, and how many those were."""
        if self._seen and "loss" in logs:
            right, counts = zip(*self._seen, strict=True)
            logs["accuracy"] = torch.stack(right).mean().item()
            logs["negatives"] = sum(counts) / len(counts)
            logs["temperature"] = (-self.accelerator.unwrap_model(self.model).dual.logit_scale.float()).exp().item()
            self._seen.clear()
        super().log(logs, *args, **kwargs)

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Those of `Trainer` without the temperature, which decay would pull towards 1."""
        return [name for name in super().get_decay_parameter_names(model) if not name.endswith("logit_scale")]


def joined_pairs(images: Tensor, texts: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor, list[int]]:
    """What all processes have, rank after rank; a collective.

    Args:
        images: (B, d) of this one, on the graph.
        texts: (B, d), constants.
        rows: B numbers of rows.
    """
    here = torch.arange(len(rows), device=images.device)
    known = tuple(range(len(rows)))
    own = Signals(
        logps={},
        num_tokens={},
        features={"images": Ragged(images, here), "texts": Ragged(texts, here)},
        sources=("",) * len(rows),
        row_ids=tuple(map(str, rows)),
        host_feature_rows={"images": known, "texts": known},
    )
    found = over_ranks(own, images.device)
    return found.features["images"].values, found.features["texts"].values, [int(row) for row in found.row_ids]
