"""Per-token log-probabilities by key, appended in shards: many short entries, few files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

KEY_BYTES = 16


class TensorStore(Protocol):
    """Tensors on disk by key; a file appears whole or not at all."""

    folder: Path

    def get(self, key: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Tensors and the text kept with them; None where there is nothing readable."""
        ...

    def put(self, key: str, tensors: Mapping[str, Tensor], text: Mapping[str, str] | None = None) -> None:
        """Keeps tensors; an error where the disk refuses."""
        ...

    def offer(self, key: str, tensors: Mapping[str, Tensor], text: Mapping[str, str] | None = None) -> None:
        """Keeps tensors; a warning where the disk refuses."""
        ...

    def keys(self) -> Iterator[str]:
        """Every key that is there."""
        ...


class LogpStore:
    """Log-probabilities of scored responses, on disk and memory-mapped.

    Args:
        files: Where the shards are. Other processes may add to them; `refresh` shows what they added.
    """

    def __init__(self, files: TensorStore) -> None:
        self.files = files
        self._shards: list[Tensor] = []
        self._places: dict[bytes, tuple[int, int, int]] = {}
        self._read: set[str] = set()
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def get(self, key: bytes) -> Tensor | None:
        """(R,) float32, one value per response token, or None."""
        place = self._places.get(key)
        if place is None:
            return None
        shard, start, stop = place
        return self._shards[shard][start:stop]

    def add(self, entries: Mapping[bytes, Tensor]) -> None:
        """Keeps entries `{key: (R,)}` as one new shard.

        Raises:
            OSError: If the disk refuses.
        """
        if not entries:
            return
        joined = b"".join(entries)
        shard = {
            "keys": torch.frombuffer(bytearray(joined), dtype=torch.uint8).reshape(len(entries), KEY_BYTES),
            "lengths": torch.tensor([values.numel() for values in entries.values()]),
            "values": torch.cat([values.detach().float().cpu() for values in entries.values()]),
        }
        name = hashlib.blake2b(joined, digest_size=KEY_BYTES).hexdigest()
        self.files.put(name, shard)
        self._read.add(name)
        self._index(shard)

    def refresh(self) -> None:
        """Reads shards that were added since; damaged ones count for nothing, so their entries are made again."""
        for name in self.files.keys():  # noqa: SIM118
            if name in self._read:
                continue
            found = self.files.get(name)
            if found is not None:
                self._read.add(name)
                self._index(found[0])

    def _index(self, shard: Mapping[str, Tensor]) -> None:
        keys, start = shard["keys"].numpy().tobytes(), 0
        for number, length in enumerate(shard["lengths"].tolist()):
            key = keys[number * KEY_BYTES : (number + 1) * KEY_BYTES]
            self._places.setdefault(key, (len(self._shards), start, start + length))
            start += length
        self._shards.append(shard["values"])
