from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler, SkipBatchSampler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from mllm_align.contract import Batch, Branch, Prefix, View
from mllm_align.data.lengths import PackedLengths
from mllm_align.families import family_of
from mllm_align.signals import EngineOptions
from mllm_align.signals.plan import plan_groups
from mllm_align.trainers.sampler import EpochBatches, PaddedTokens, TokenBudgetSampler
from tiny import tiny


def lengths_of(rows: list[list[tuple[int, int, int]]], referenced: list[bool] | None = None) -> PackedLengths:
    starts = np.cumsum([0, *map(len, rows)])
    branches = np.array([branch for row in rows for branch in row], dtype=np.int64).reshape(-1, 3)
    return PackedLengths(starts, branches, np.array(referenced or [True] * len(rows)))


def one_sequence(sizes: list[int]) -> PaddedTokens:
    return PaddedTokens(lengths_of([[(number, size, 0)] for number, size in enumerate(sizes)]), True, 0.8)


def random_rows(seed: int, count: int) -> list[list[tuple[int, int, int]]]:
    """Rows of one to three branches; some share a prompt, also between rows."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(5, 60, 2 * count)
    rows = []
    for _ in range(count):
        prefixes = rng.integers(0, 2 * count, rng.integers(1, 4))
        rows.append([(int(p), int(sizes[p]), int(rng.integers(0, 30))) for p in prefixes])
    return rows


def as_batch(rows: list[list[tuple[int, int, int]]], referenced: list[bool]) -> Batch:
    """The batch that a collator would make of such rows."""
    places: dict[int, int] = {}
    prefixes: list[Prefix] = []
    branches = []
    for number, row in enumerate(rows):
        for place, (key, size, tail) in enumerate(row):
            if key not in places:
                places[key] = len(prefixes)
                prefixes.append(Prefix(torch.arange(size), (), {}))
            branches.append(Branch(places[key], number, View(None, str(place)), torch.arange(tail + 1)))
    return Batch(("",) * len(rows), ("",) * len(rows), (), tuple(prefixes), tuple(branches), tuple(referenced))


@pytest.mark.parametrize("packing", ["auto", "off"])
@pytest.mark.parametrize("limit", [None, 150])
@pytest.mark.parametrize("seed", range(4))
def test_tokens_are_those_that_the_engine_runs(packing: str, limit: int | None, seed: int) -> None:
    model, _ = tiny("llava")
    options = EngineOptions(packing=packing, least_fill=0.8, max_tokens_per_forward=limit)
    rows = random_rows(seed, 6)
    for referenced in ([True] * 6, [bool(n % 2) for n in range(6)]):
        tokens = PaddedTokens(lengths_of(rows, referenced), packing == "auto", 0.8, limit)
        run = []
        for reference in (True, False):
            groups = plan_groups(family_of(model), model, as_batch(rows, referenced), options, reference=reference)
            run.append(sum(group.inputs.input_ids.numel() for group in groups))
        assert tokens(range(6)) == max(run)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(8, 60),
    ranks=st.integers(1, 4),
    budget=st.integers(280, 900),
    shared=st.booleans(),
)
def test_every_epoch_is_fair(seed: int, count: int, ranks: int, budget: int, shared: bool) -> None:
    """Equal counts over ranks and epochs, every row once, no batch over the budget."""
    rng = np.random.default_rng(seed)
    referenced = (rng.random(count) < 0.5).tolist()
    tokens = PaddedTokens(lengths_of(random_rows(seed, count), referenced), shared, 0.8)
    rows = [row for row in range(count) if row % 5]
    given: dict[str, Any] = {"seed": seed, "num_ranks": ranks}
    try:
        samplers = [TokenBudgetSampler(tokens, rows, budget, rank=rank, **given) for rank in range(ranks)]
    except ValueError:
        assert ranks > 1
        return
    for epoch in range(6):
        drawn = []
        for sampler in samplers:
            sampler.set_epoch(epoch)
            drawn.append(list(sampler))
            assert len(drawn[-1]) == len(sampler)
        assert len({len(batches) for batches in drawn}) == 1
        flat = [batch for batches in drawn for batch in batches]
        assert sorted(row for batch in flat for row in batch) == rows
        assert all(batch and tokens(batch) <= budget for batch in flat)


def test_batches_are_fixed_by_seed_and_epoch() -> None:
    tokens = one_sequence([10 + n % 37 for n in range(100)])

    def draw(seed: int, epoch: int) -> list[list[int]]:
        sampler = TokenBudgetSampler(tokens, range(100), 300, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert draw(1, 2) == draw(1, 2)
    assert draw(1, 2) != draw(1, 3)
    assert draw(1, 2) != draw(2, 2)
    assert {frozenset(batch) for batch in draw(1, 2)} != {frozenset(batch) for batch in draw(1, 3)}


def test_rows_of_similar_length_are_together_and_batches_are_shuffled() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 200, 800).tolist()
    tokens = one_sequence(sizes)
    batches = TokenBudgetSampler(tokens, range(800), 2000).batches(0)
    run = sum(tokens(batch) for batch in batches)
    assert sum(sizes) / run > 0.95
    assert run / len(batches) > 0.9 * 2000
    longest = [max(sizes[row] for row in batch) for batch in batches]
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.4


def test_uneven_counts_are_evened_out_by_cutting_the_batches_with_most_rows() -> None:
    """Three long rows fill a batch each, six short ones a fourth; four ranks get one each, three get two."""
    tokens = one_sequence([100, 100, 100, 10, 10, 10, 10, 10, 10])
    four = TokenBudgetSampler(tokens, range(9), 100, num_ranks=4, shuffle=False)
    assert four.batches(0) == [[0], [1], [2], [3, 4, 5, 6, 7, 8]]
    three = TokenBudgetSampler(tokens, range(9), 100, num_ranks=3, shuffle=False)
    assert [len(batch) for batch in three.batches(0)] == [1, 1, 1, 1, 2, 3]


def test_an_epoch_that_needs_more_batches_gets_those_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = one_sequence([10 + n % 7 for n in range(40)])
    sampler = TokenBudgetSampler(tokens, range(40), 100, num_ranks=2)
    draw = sampler._draw
    monkeypatch.setattr(sampler, "_draw", lambda epoch, attempt: [[n] for n in range(40)] if epoch else draw(0, 0))
    assert len(sampler.batches(3)) == sampler.num_batches < 40
    assert sorted(row for batch in sampler.batches(3) for row in batch) == list(range(40))
    assert sampler.batches(3) != sampler.batches(4)


def test_too_few_rows_are_refused() -> None:
    tokens = one_sequence([100, 100, 100])
    with pytest.raises(ValueError, match=r"3 rows make 3 batches.*2 processes.*fewer processes"):
        TokenBudgetSampler(tokens, range(3), 100, num_ranks=2)


def test_sequential_order_is_kept() -> None:
    tokens = one_sequence([10, 50, 20, 40, 30])
    sampler = TokenBudgetSampler(tokens, range(5), 100, shuffle=False)
    assert list(sampler) == [[0, 1, 2], [3, 4]]
    sampler.set_epoch(3)
    assert list(sampler) == [[0, 1, 2], [3, 4]]


def epoch_batches(by_epoch: bool, rank: int = 0, ranks: int = 2) -> EpochBatches:
    rows = SeedableRandomSampler(range(10), data_seed=3)
    return EpochBatches(BatchSamplerShard(BatchSampler(rows, 2, False), ranks, rank), by_epoch)


@pytest.mark.parametrize("rank", [0, 1])
def test_batches_know_their_epoch_on_every_rank_also_behind_what_is_skipped(rank: int) -> None:
    plain, dated = epoch_batches(False, rank), epoch_batches(True, rank)
    orders = []
    for epoch in range(3):
        for batches in (plain, dated):
            batches.set_epoch(epoch)
        orders.append(list(plain))
        assert list(dated) == [[(index, epoch) for index in batch] for batch in orders[-1]]
        assert len(dated) == len(orders[-1]) == 3
    assert orders[0] != orders[1]
    assert (plain.batch_size, plain.num_processes, plain.split_batches) == (2, 2, False)
    # As a run begins that is resumed in the middle of the second epoch.
    resumed = epoch_batches(False, rank)
    skipping = SkipBatchSampler(resumed, skip_batches=1)
    skipping.batch_sampler.set_epoch(1)
    assert list(skipping) == orders[1][1:]


def test_batches_by_tokens_know_their_epoch() -> None:
    sampler = TokenBudgetSampler(one_sequence([10 + n for n in range(12)]), range(12), 40)
    batches = EpochBatches(sampler, True)
    batches.set_epoch(2)
    assert sampler.epoch == 2
    assert list(batches) == [[(row, 2) for row in batch] for batch in sampler.batches(2)]
    assert len(batches) == len(sampler)
