"""Batches on their way from a worker process: few storages, however many tensors."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from mllm_align.contract import Batch


def few_storages(batch: Batch) -> Batch:
    """The same batch with all tensors of one dtype in one storage.

    Each storage that comes from another process holds a file open. A batch has hundreds of small tensors, and a
    process may have 1,024 open files.
    """
    kinds: dict[torch.dtype, list[Tensor]] = defaultdict(list)

    def collect(tensor: Tensor) -> Tensor:
        kinds[tensor.dtype].append(tensor)
        return tensor

    batch.map(collect)
    pieces = {dtype: iter(_joined(tensors)) for dtype, tensors in kinds.items()}
    return batch.map(lambda tensor: next(pieces[tensor.dtype]).view(tensor.shape))


def _joined(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    return flat.split([tensor.numel() for tensor in tensors])
