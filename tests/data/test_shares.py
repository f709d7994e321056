"""Shares of sources: whole numbers that add up, even turns, caps, and what is refused."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_align.data.corrupt import Crop, corrupted
from mllm_align.data.corrupt.dataset import with_draws
from mllm_align.data.errors import DataError
from mllm_align.data.mixing import MixedDataset, MixedStream, mix_sources
from mllm_align.data.shares import Shares, split, turns

WEIGHTS = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=6).filter(any)


def rows(count: int, name: str = "r") -> list[dict[str, Any]]:
    return [{"id": f"{name}{number}", "prompt": "?", "chosen": "a"} for number in range(count)]


def stream(count: int, name: str, shards: int = 1) -> datasets.IterableDataset:
    return datasets.Dataset.from_list(rows(count, name)).to_iterable_dataset(num_shards=shards)


@settings(max_examples=60, deadline=None)
@given(weights=WEIGHTS, total=st.integers(0, 500))
def test_whole_numbers_are_those_of_the_largest_remainders(weights: list[float], total: int) -> None:
    found = list(split(total, {str(place): weight for place, weight in enumerate(weights)}).values())
    exact = [total * weight / math.fsum(weights) for weight in weights]
    assert sum(found) == total
    assert all(math.floor(e - 1e-6) <= f <= math.ceil(e + 1e-6) for e, f in zip(exact, found, strict=True))
    # One that was rounded up has no smaller remainder than one that was rounded down.
    up = [e - math.floor(e) for e, f in zip(exact, found, strict=True) if f > e + 1e-6]
    down = [e - math.floor(e) for e, f in zip(exact, found, strict=True) if f < e - 1e-6]
    assert not up or not down or min(up) >= max(down) - 1e-6


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(0, 60), min_size=1, max_size=5).filter(any))
def test_turns_are_even_in_every_window(counts: list[int]) -> None:
    found = turns(counts).tolist()
    total, sources = sum(counts), sum(map(bool, counts))
    assert Counter(found) == Counter({place: count for place, count in enumerate(counts) if count})
    for place, count in enumerate(counts):
        had = [0]
        for turn in found:
            had.append(had[-1] + (turn == place))
        off = [seen - time * count / total for time, seen in enumerate(had)]
        bound = (1 + sources * count / total) / 2 + 1e-6
        assert max(map(abs, off)) <= bound
        assert max(off) - min(off) <= 2 * bound  # any window is the difference of two beginnings


def test_a_cap_keeps_rows_drawn_by_the_seed() -> None:
    parts = {"small": rows(3, "s"), "large": rows(50, "l")}

    def kept(seed: int, given: dict[str, Any] = parts) -> list[str]:
        mixed = mix_sources(given, Shares(caps={"large": 10, "small": 5}, seed=seed))
        assert isinstance(mixed, MixedDataset)
        assert mixed.sizes["large"] == 10
        assert len(mixed) == sum(mixed.sizes.values())
        return [row["id"] for row in mixed if row["source"] == "large"]

    assert len(set(kept(0))) == 10
    assert kept(0) == kept(0) == kept(0, {**parts, "more": rows(4)})
    assert kept(0) != kept(1)
    assert set(kept(0)) - {f"l{number}" for number in range(10)}
    drawn = Counter(name for seed in range(200) for name in kept(seed))
    assert len(drawn) == 50
    assert max(drawn.values()) < 80  # 40 are expected, 5.7 is the standard deviation


def test_a_cap_stays_where_images_are_drawn_otherwise() -> None:
    pairs = [{**row, "image": np.zeros((8, 8, 3), np.uint8)} for row in rows(9)]
    mixed = MixedDataset({"pairs": corrupted(pairs, Crop()), "plain": rows(2)}, Shares(caps={"pairs": 4}))
    changed = with_draws(mixed, lambda draws: draws)
    assert changed is not mixed
    names = [row["id"] for row in mixed]
    assert [row["id"] for row in changed] == names
    assert mixed.by_epoch
    assert mixed[1, 3]["id"] == names[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_have_turns_by_weight_and_begin_again(workers: int) -> None:
    parts = {"a": stream(4, "a", 2), "b": stream(40, "b", 2), "off": stream(2, "o", 2)}
    shares = Shares(weights={"a": 3, "b": 1, "off": 0}, epoch_rows=18)
    mixed = mix_sources(parts, shares)
    assert isinstance(mixed, MixedStream)
    loader = torch.utils.data.DataLoader(mixed, batch_size=None, num_workers=workers, collate_fn=lambda row: row)
    found = [row["id"] for row in loader]
    if not workers:
        assert found == [row["id"] for row in mixed.with_parts(parts)]
        assert [name[0] for name in found] == ["ab"[turn] for turn in turns([14, 4])]
        assert [name for name in found if name[0] == "a"] == [f"a{n % 4}" for n in range(14)]
        assert [name for name in found if name[0] == "b"] == ["b0", "b1", "b2", "b3"]
    assert len(found) == 18
    assert abs(sum(name[0] == "a" for name in found) - 13.5) <= max(1, workers)
    assert {name for name in found if name[0] == "a"} == {"a0", "a1", "a2", "a3"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"weights": {"a": -1.0}}, r"source_weights\['a'\] must be a number of at least 0, not -1"),
        ({"weights": {"a": math.nan}}, "must be a number of at least 0, not nan"),
        ({"weights": {"a": math.inf}}, "must be a number of at least 0, not inf"),
        ({"caps": {"a": 0}}, r"source_caps\['a'\] must be a whole number of rows of at least 1, not 0"),
        ({"caps": {"a": 1.5}}, "must be a whole number"),
        ({"epoch_rows": 0}, "epoch_rows must be a whole number of rows of at least 1"),
        ({"redraw": True}, "redraw_caps has nothing to draw anew: set source_caps"),
        (
            {"weights": {"pear": 1.0}},
            "source_weights names 'pear', but the sources are pears, web; did you mean 'pears'",
        ),
        ({"caps": {"x": 1}}, "source_caps names 'x', but the sources are pears, web"),
        ({"weights": {"pears": 0, "web": 0}}, "every source has weight 0"),
    ],
)
def test_refusals(given: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        mix_sources({"pears": rows(2), "web": rows(2)}, Shares(**given))


def test_a_source_that_would_never_come_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"'pears' has 0.01 of 10.01 shares \(a source without a weight.*none of the 20"
    ):
        Shares(weights={"pears": 0.01}).per_epoch({"pears": 10, "web": 10})
    assert Shares(weights={"pears": 0}).per_epoch({"pears": 10, "web": 10}) == {"pears": 0, "web": 10}


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        (Shares(caps={"a": 1}), r"source_caps draws among all rows of a source \(a\).*load without streaming"),
        (Shares(weights={"a": 1}), "shares need a weight for b"),
        (Shares(epoch_rows=4), "shares need a weight for a, b"),
        (Shares(weights={"a": 1, "b": 1}), "shares need epoch_rows"),
    ],
)
def test_what_streams_cannot_have(shares: Shares, told: str) -> None:
    with pytest.raises(DataError, match=told):
        mix_sources({"a": stream(2, "a"), "b": rows(2)}, shares)


def test_a_stream_without_rows_does_not_run_for_ever() -> None:
    mixed = MixedStream(
        {"a": stream(2, "a"), "b": stream(2, "b").filter(lambda row: False)},
        Shares(weights={"a": 1, "b": 1}, epoch_rows=4),
    )
    with pytest.raises(DataError, match="source 'b' is a stream without rows"):
        list(mixed)
