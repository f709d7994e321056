"""Keys of earlier batches: negatives that cost no forward pass."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mllm_align.objectives.identity import Ids, same


class Memory(nn.Module):
    """A first-in first-out store of keys, Cross-Batch Memory (Wang et al., 2020), https://arxiv.org/abs/1912.06798

    Keys are as they were when their batch was measured, which holds as long as the model moves slowly; there is no
    second, averaged model as in MoCo. Each is kept with the number of its row, text, class and image, so that a row
    that comes round again does not meet itself as a negative, nor one with the same text or image. It is part of the
    objective's state: a resumed run has it.

    Args:
        size: Keys that are kept.
        width: Numbers of a key.

    Attributes:
        keys: (size, width) float32; what has not been filled is zero.
        rows: (size,) int64, `numbers_of` the row ids; 0 for none.
        texts: (size,) int64, of the texts.
        kinds: (size,) int64, of the classes.
        images: (size,) int64, of the images.
        added: 0-d int64, how many were ever added.
    """

    keys: Tensor
    rows: Tensor
    texts: Tensor
    kinds: Tensor
    images: Tensor
    added: Tensor

    def __init__(self, size: int, width: int) -> None:
        """Empty."""
        super().__init__()
        self.register_buffer("keys", torch.zeros(size, width))
        self.register_buffer("rows", torch.zeros(size, dtype=torch.long))
        self.register_buffer("texts", torch.zeros(size, dtype=torch.long))
        self.register_buffer("kinds", torch.zeros(size, dtype=torch.long))
        self.register_buffer("images", torch.zeros(size, dtype=torch.long))
        self.register_buffer("added", torch.zeros((), dtype=torch.long))

    def filled(self) -> Tensor:
        """(size,) bool: places that hold a key."""
        return torch.arange(len(self.keys), device=self.keys.device) < self.added

    @torch.no_grad()
    def add(
        self,
        keys: Tensor,
        rows: Tensor,
        texts: Tensor | None = None,
        kinds: Tensor | None = None,
        images: Tensor | None = None,
    ) -> None:
        """Puts (N, width) keys in the place of the oldest; of more than fit, the last. None is for keys without."""
        size = len(self.keys)
        offset = max(0, len(keys) - size)
        place = (self.added + offset + torch.arange(len(keys) - offset, device=self.keys.device)) % size
        stores = self.keys, self.rows, self.texts, self.kinds, self.images
        for store, values in zip(stores, (keys, rows, texts, kinds, images), strict=True):
            given = torch.zeros_like(rows) if values is None else values
            store.index_copy_(0, place, given[offset:].to(store.dtype))
        self.added += len(keys)


Further = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def exchange(
    before: tuple[Memory, Memory],
    images: Tensor,
    texts: Tensor,
    row: Tensor,
    anchors: Tensor | None,
    ids: Ids | None = None,
) -> Further:
    """What was kept of earlier batches; then this batch's is kept.

    Args:
        before: Of images, and of texts.
        images: (B, d) keys of this batch.
        texts: (B, d) likewise.
        row: (B,) int64, `numbers_of` the row ids.
        anchors: (N,) int64, the rows to keep; None to keep nothing.
        ids: What images and texts are; None where nobody told.

    Returns:
        Earlier texts (M, d) with (B, M) bool, for which rows they count, which is not for their own, nor for those
        that share their text or image; and earlier images likewise.
    """
    found = []
    for memory in reversed(before):
        counts = memory.filled() & ~same(row, memory.rows)
        if ids is not None:
            counts &= ~same(ids.texts, memory.texts) & ~same(ids.images, memory.images)
        # Its keys are about to be overwritten, while the backward pass still reads them.
        found.append((memory.keys.to(images.dtype).clone(), counts))
    if anchors is not None:
        read = (None, None) if ids is None else (ids.texts[anchors], ids.images[anchors])
        for memory, values in zip(before, (images, texts), strict=True):
            memory.add(values.detach()[anchors], row[anchors], texts=read[0], images=read[1])
    return found[0], found[1]


def check_size(name: str, size: object) -> None:
    """Refuses what is no number of keys.

    Raises:
        ValueError: Naming the objective.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ValueError(f"{name}: memory must be a number of keys from 0 up, got {size!r}")


def numbers_of(names: Sequence[str]) -> Tensor:
    """(N,) int64, the same for the same name in every run and on every rank; 0 for an empty one."""
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() if name else bytes(8) for name in names)
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests], dtype=torch.long)
