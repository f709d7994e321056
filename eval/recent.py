"""Image tokens of the pictures seen last: questions about a picture, arms and methods share one pass of the tower."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

NUM_IMAGES = 64

Kept = tuple[dict[str, Tensor], dict[str, str]]


class RecentTensors:
    """A store of tensors (`mllm_align.signals.store.TensorStore`) in memory, of the keys used last.

    Args:
        limit: Keys that are kept.
    """

    folder = Path()  # nothing is on disk

    def __init__(self, limit: int = NUM_IMAGES) -> None:
        self.limit = limit
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def get(self, key: str) -> Kept | None:
        """Tensors and the text kept with them, or None."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: str, tensors: Mapping[str, Tensor], text: Mapping[str, str] | None = None) -> None:
        """Keeps tensors; those used longest ago are dropped."""
        self._kept[key] = dict(tensors), dict(text or {})
        self._kept.move_to_end(key)
        while len(self._kept) > self.limit:
            self._kept.popitem(last=False)

    offer = put

    def keys(self) -> Iterator[str]:
        """Every key that is there."""
        yield from self._kept
