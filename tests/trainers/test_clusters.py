"""Batches by a column: rows that are alike together, none twice, every rank the same number, and after resuming."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from mllm_align.data.schema import DataError
from mllm_align.objectives.next_token import NextToken
from mllm_align.trainers.clusters import ClusterSampler
from runs import make_trainer, pair_rows


def labels(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return [rng.choice("aaabbc") for _ in range(count)]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("count", [3, 40, 41, 43])
def test_ranks_share_clusters(count: int, ranks: int, shuffle: bool) -> None:
    of = labels(count, count)
    samplers = [ClusterSampler(of, 4, seed=1, num_ranks=ranks, rank=rank, shuffle=shuffle) for rank in range(ranks)]
    for epoch in (0, 1):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        own = [list(sampler) for sampler in samplers]
        assert {len(batches) for batches in own} == {len(samplers[0])}
        assert all(0 < len(batch) <= 4 for batches in own for batch in batches)
        rows = [row for batches in own for batch in batches for row in batch]
        assert len(rows) == len(set(rows)) >= count - ranks + 1
        mixed = sum(len({of[row] for batches in own for row in batches[step]}) > 1 for step in range(len(own[0])))
        left = sum(of.count(label) % (4 * ranks) for label in set(of))
        assert mixed <= -(-left // (4 * ranks))
        assert sum(
            len({of[row] for batches in own for row in batches[step]}) == 1 for step in range(len(own[0]))
        ) >= sum(of.count(label) // (4 * ranks) for label in set(of))


def test_epochs_differ_and_repeat() -> None:
    sampler = ClusterSampler(labels(0, 40), 4, seed=1)
    first, second = sampler.batches(0), sampler.batches(1)
    assert first != second
    assert first == ClusterSampler(labels(0, 40), 4, seed=1).batches(0)
    assert first != ClusterSampler(labels(0, 40), 4, seed=2).batches(0)


def test_fewer_rows_than_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="1 rows are too few for 2 processes"):
        ClusterSampler(["a"], 4, num_ranks=2)


def rows() -> list[dict[str, Any]]:
    return [{**row, "cluster": number % 3} for number, row in enumerate(pair_rows(12))]


def test_a_run_has_batches_of_one_cluster(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, NextToken(), rows(), batch_column="cluster", max_steps=-1, num_train_epochs=2)
    batches = [entry["batch"].row_ids for entry in trainer.get_train_dataloader()]
    assert len(batches) == 6
    assert all(len({int(row) % 3 for row in batch}) == 1 for batch in batches)
    assert sorted(row for batch in batches for row in batch) == sorted(str(row) for row in range(12))
    trainer.train()
    assert trainer.state.global_step == 12


@pytest.mark.parametrize(
    ("rows_of", "changes", "error", "told"),
    [
        (lambda: pair_rows(4), {}, DataError, "row 0.*nothing in column 'cluster', which batch_column names"),
        (rows, {"max_tokens_per_batch": 600}, ValueError, "batch_column and max_tokens_per_batch both"),
        (lambda: iter(rows()), {}, ValueError, "load without streaming"),
    ],
)
def test_what_does_not_go_with_it(
    rows_of: Any, changes: dict[str, Any], error: type, told: str, tmp_path: Path
) -> None:
    given = rows_of()
    if not isinstance(given, list):
        import datasets

        given = datasets.IterableDataset.from_generator(lambda: iter(rows()))
    with pytest.raises(error, match=told):
        make_trainer(tmp_path, NextToken(), given, batch_column="cluster", **changes)
