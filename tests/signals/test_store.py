"""Entries come back value for value, whoever wrote them, and damage costs only what was damaged."""

from __future__ import annotations

from pathlib import Path

import torch

from mllm_align.data.tensor_files import TensorFiles
from mllm_align.signals.store import LogpStore


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def store_in(folder: Path) -> LogpStore:
    return LogpStore(TensorFiles(folder, {"what": "a test"}))


def entries(*numbers: int) -> dict[bytes, torch.Tensor]:
    """Entry n has n + 1 values that occur nowhere else."""
    return {key(number): -(torch.arange(number + 1.0) + 100 * number + 0.1) for number in numbers}


def test_entries_come_back_in_another_process(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.add(entries(0, 3))
    store.add(entries(5))
    store.add({})
    for reader in (store, store_in(tmp_path)):
        assert len(reader) == 3
        assert key(1) not in reader
        assert reader.get(key(1)) is None
        for name, values in entries(0, 3, 5).items():
            assert name in reader
            assert reader.get(name).dtype == torch.float32
            assert torch.equal(reader.get(name), values)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_refresh_shows_what_others_added(tmp_path: Path) -> None:
    first, second = store_in(tmp_path), store_in(tmp_path)
    first.add(entries(1, 2))
    second.add(entries(2, 4))
    assert key(1) not in second
    second.refresh()
    first.refresh()
    for store in (first, second):
        assert len(store) == 3
        assert torch.equal(store.get(key(1)), entries(1)[key(1)])
        assert torch.equal(store.get(key(4)), entries(4)[key(4)])


def test_a_damaged_shard_loses_its_own_entries_alone(tmp_path: Path) -> None:
    store_in(tmp_path).add(entries(1))
    damaged = next(tmp_path.rglob("*.safetensors"))
    store_in(tmp_path).add(entries(2, 3))
    damaged.write_bytes(damaged.read_bytes()[:-3])
    store = store_in(tmp_path)
    assert key(1) not in store
    assert torch.equal(store.get(key(3)), entries(3)[key(3)])
    store.add(entries(1))
    assert torch.equal(store_in(tmp_path).get(key(1)), entries(1)[key(1)])
