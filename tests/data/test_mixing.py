"""Sources side by side: every row once, tagged, columns as different as they like."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
import torch

from mllm_align.data.errors import DataError
from mllm_align.data.mixing import MixedDataset, MixedStream, mix_sources

PAIRS = [{"id": f"p{n}", "prompt": "?", "chosen": "a", "rejected": "b"} for n in range(3)]
PLAIN = [{"id": f"q{n}", "messages": [{"role": "user", "content": "?"}], "length": n} for n in range(2)]


def test_map_style() -> None:
    mixed = mix_sources({"pairs": PAIRS, "plain": datasets.Dataset.from_list(PLAIN)})
    assert isinstance(mixed, MixedDataset)
    assert [mixed[index]["id"] for index in range(len(mixed))] == ["p0", "p1", "p2", "q0", "q1"]
    assert [mixed[index]["source"] for index in range(len(mixed))] == ["pairs"] * 3 + ["plain"] * 2
    assert mixed[-1]["id"] == "q1"
    assert set(mixed[0]) == {"id", "prompt", "chosen", "rejected", "source"}
    for index in (5, -6):
        with pytest.raises(IndexError):
            mixed[index]
    assert "source" not in PAIRS[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_take_turns_and_every_row_comes_once(workers: int) -> None:
    parts: dict[str, Any] = {
        "pairs": datasets.Dataset.from_list(PAIRS).to_iterable_dataset(num_shards=2),
        "plain": datasets.Dataset.from_list(PLAIN).to_iterable_dataset(num_shards=2),
    }
    mixed = mix_sources(parts)
    assert isinstance(mixed, MixedStream)
    rows = list(torch.utils.data.DataLoader(mixed, batch_size=None, collate_fn=_same, num_workers=workers))
    if not workers:
        assert [row["id"] for row in rows] == ["p0", "q0", "p1", "q1", "p2"]
    assert sorted(row["id"] for row in rows) == ["p0", "p1", "p2", "q0", "q1"]
    assert {row["source"] for row in rows if row["id"].startswith("q")} == {"plain"}


def _same(row: Any) -> Any:
    return row


def test_epochs_reach_the_streams() -> None:
    stream = datasets.Dataset.from_list(PAIRS).to_iterable_dataset().shuffle(seed=1, buffer_size=3)
    mixed = mix_sources({"pairs": stream, "plain": datasets.Dataset.from_list(PLAIN).to_iterable_dataset()})
    orders = set()
    for epoch in range(6):
        mixed.set_epoch(epoch)
        orders.add(tuple(row["id"] for row in mixed if row["source"] == "pairs"))
    assert len(orders) > 1


def test_nothing_to_mix() -> None:
    with pytest.raises(DataError, match="no data sources"):
        mix_sources({})
    with pytest.raises(DataError, match="source 'plain' has no rows"):
        mix_sources({"pairs": PAIRS, "plain": []})
