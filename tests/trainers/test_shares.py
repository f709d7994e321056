"""Shares in a run: exact, every row once before any twice, the same global batches on any number of ranks, resumed."""

from __future__ import annotations

import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_align.data.errors import DataError
from mllm_align.data.shares import Shares
from mllm_align.objectives.next_token import NextToken
from mllm_align.recipe.plan import plan_of
from mllm_align.trainers.save import write_card
from mllm_align.trainers.shares import Cycle, ShareSampler
from runs import gradients, make_trainer, pair_rows, start_ranks, wait_for_ranks

SIZES = {"pairs": 7, "web": 40, "text": 3}
WEIGHTS = {"pairs": 2.0, "web": 1.0, "text": 1.0}
PARTS = {"pairs": pair_rows(3), "web": pair_rows(9, images=False)}


def source_of(row: int) -> str:
    return "pairs" if row < 7 else "web" if row < 47 else "text"


def naive_counts(total: int, weights: dict[str, float]) -> dict[str, int]:
    """Row by row: all whole shares, then one each to whoever lacks most."""
    whole = Fraction(0)
    for weight in weights.values():
        whole += Fraction(weight)
    counts = {}
    for name, weight in weights.items():
        counts[name] = 0
        while (counts[name] + 1) * whole <= total * Fraction(weight):
            counts[name] += 1
    while sum(counts.values()) < total:
        lacking = {name: total * Fraction(weight) / whole - counts[name] for name, weight in weights.items()}
        counts[max(lacking, key=lambda name: lacking[name])] += 1
    return counts


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 12), data=st.data(), shuffle=st.booleans())
def test_all_rows_come_once_before_any_comes_twice(size: int, data: st.DataObject, shuffle: bool) -> None:
    count = data.draw(st.integers(1, size))
    cycle, seen = Cycle(size, count, (3, "web", 0), shuffle), Counter[int]()
    drawn = [cycle.rows(epoch).tolist() for epoch in range(2 * size + 3)]
    for own in drawn:
        assert len(own) == len(set(own)) == count
        for row in own:
            seen[row] += 1
        least = min(seen[row] for row in range(size))
        assert max(seen.values()) - least <= 1
    for epoch in (5, 2, 0, 4):
        own = Cycle(size, count, (3, "web", 0), shuffle)
        assert own.rows(epoch % len(drawn)).tolist() == drawn[epoch % len(drawn)]
        assert cycle.rows(epoch % len(drawn)).tolist() == drawn[epoch % len(drawn)]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("weights", "epoch_rows", "caps"),
    [(WEIGHTS, None, {}), (WEIGHTS, 17, {}), ({"text": 40.0}, None, {}), ({}, 11, {}), (WEIGHTS, None, {"web": 6})],
)
def test_shares_are_exact_in_every_epoch(
    shuffle: bool, weights: dict[str, float], epoch_rows: int | None, caps: dict[str, int]
) -> None:
    shares = Shares(weights, caps, bool(caps), epoch_rows, seed=1)
    sampler = ShareSampler(SIZES, shares, 4, shuffle=shuffle)
    used = {name: min(size, caps.get(name, size)) for name, size in SIZES.items()}
    total = epoch_rows or sum(used.values())
    expected = naive_counts(total, {name: weights.get(name, size) for name, size in used.items()})
    web: Counter[int] = Counter()
    for epoch in range(7):
        sampler.set_epoch(epoch)
        found = [row for batch in sampler for row in batch]
        assert Counter(map(source_of, found)) == Counter(expected)
        for name, size in used.items():
            times = Counter(row for row in found if source_of(row) == name)
            assert len(times) == min(size, expected[name])
            assert max(times.values()) - min(times.values()) <= 1
        web.update(row for row in found if source_of(row) == "web")
    # Over epochs a large source gives all its rows, also where each has a few of them.
    if 7 * expected["web"] >= SIZES["web"]:
        assert len(web) == SIZES["web"]
    if not caps:
        assert max(web.values()) - min(web[row] for row in range(7, 47)) <= 1


def test_every_step_has_nearly_its_share() -> None:
    sampler = ShareSampler(SIZES, Shares(WEIGHTS, epoch_rows=400), 8)
    for batch in sampler:
        counts = Counter(map(source_of, batch))
        assert counts == {"pairs": 4, "web": 2, "text": 2}
    first = [source_of(batch[0]) for batch in sampler]
    assert len(set(first)) > 1  # within a step no source has a place of its own


@pytest.mark.parametrize("epoch_rows", [48, 50, 49])
def test_ranks_share_the_same_global_batches(epoch_rows: int) -> None:
    """One process with batches of four, two with two, four with one: the same rows in the same step."""

    def steps(ranks: int, epoch: int) -> list[list[int]]:
        given: dict[str, Any] = {"num_ranks": ranks, "shuffle": True}
        samplers = [
            ShareSampler(SIZES, Shares(WEIGHTS, epoch_rows=epoch_rows, seed=5), 4 // ranks, rank=rank, **given)
            for rank in range(ranks)
        ]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        own = [list(sampler) for sampler in samplers]
        assert {len(batches) for batches in own} == {len(samplers[0])}
        assert all(len(batch) <= 4 // ranks for batches in own for batch in batches)
        return [[row for batch in together for row in batch] for together in zip(*own, strict=True)]

    for epoch in (0, 3):
        assert steps(1, epoch) == steps(2, epoch) == steps(4, epoch)
    assert steps(1, 0) != steps(1, 3)


def seen_rows(trainer: Any) -> list[list[tuple[str, str]]]:
    """The rows of every micro-batch that a run trains on."""
    found: list[list[tuple[str, str]]] = []
    step = trainer.training_step

    def keep(model: Any, inputs: Any, *args: Any) -> Any:
        found.append(list(zip(inputs["batch"].sources, inputs["batch"].row_ids, strict=True)))
        return step(model, inputs, *args)

    trainer.training_step = keep
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_was_interrupted_sees_the_same_rows(tmp_path: Path, workers: int) -> None:
    def run(**changes: Any) -> Any:
        given: dict[str, Any] = {"max_steps": -1, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
        given |= {"source_weights": {"pairs": 3, "web": 1}, "epoch_rows": 10, "save_total_limit": None}
        return make_trainer(tmp_path, NextToken(), PARTS, dataloader_num_workers=workers, **(given | changes))

    whole = run()
    straight = seen_rows(whole)
    whole.train()
    assert len(straight) == 10
    for start in (0, 5):
        names = Counter(name for batch in straight[start : start + 5] for name, _ in batch)
        assert names == {"pairs": 8, "web": 2}
    for done in (2, 6):
        resumed = run()
        rest = seen_rows(resumed)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{done}"))
        assert rest == straight[done:]


def test_caps_alone_go_with_batches_by_tokens_and_by_column(tmp_path: Path) -> None:
    for number, settings_ in enumerate(({"max_tokens_per_batch": 600}, {"batch_column": "id"}, {})):
        given: dict[str, Any] = {"source_caps": {"web": 4}, **settings_}
        trainer = make_trainer(tmp_path / str(number), NextToken(), PARTS, **given)
        rows = [pair for entry in trainer.get_train_dataloader() for pair in _rows(entry)]
        assert Counter(name for name, _ in rows) == {"pairs": 3, "web": 4}
        assert len(set(rows)) == 7
        assert trainer.source_rows == {"pairs": 3, "web": 4}


def _rows(entry: dict[str, Any]) -> list[tuple[str, str]]:
    return list(zip(entry["batch"].sources, entry["batch"].row_ids, strict=True))


def test_plan_and_card_tell_the_shares(tmp_path: Path) -> None:
    settings_ = {"source_weights": {"pairs": 3, "web": 1}, "source_caps": {"web": 5}, "max_steps": -1}
    trainer = make_trainer(tmp_path, NextToken(), PARTS, num_train_epochs=3, **settings_)
    plan = plan_of(trainer)
    lines = ["pairs: 3 rows, 6 an epoch, 75.0 %", "web: 5 of 9 rows, 2 an epoch, 25.0 %"]
    assert [str(share) for share in plan.shares] == lines
    assert all(f"\n  {line}\n" in str(plan) for line in lines)
    assert plan.steps == 3 * len(trainer.get_train_dataloader()) == 12
    write_card(trainer, str(tmp_path))
    assert all(f"- {line}\n" in (tmp_path / "README.md").read_text() for line in lines)


def test_streams_by_weight_in_a_run(tmp_path: Path) -> None:
    parts = {name: datasets.Dataset.from_list(pair_rows(4, images=False)).to_iterable_dataset() for name in "ab"}
    settings_ = {"source_weights": {"a": 1, "b": 3}, "epoch_rows": 8, "max_steps": 4}
    trainer = make_trainer(tmp_path, NextToken(), parts, **settings_)
    found = seen_rows(trainer)
    trainer.train()
    assert Counter(name for batch in found for name, _ in batch) == {"a": 2, "b": 6}
    assert [str(share) for share in plan_of(trainer).shares] == [
        "a: a stream, 2 an epoch, 25.0 %",
        "b: a stream, 6 an epoch, 75.0 %",
    ]


@pytest.mark.parametrize(
    ("rows", "changes", "told"),
    [
        (PARTS, {"source_weights": {"pears": 1.0}}, "source_weights names 'pears'.*did you mean 'pairs'"),
        (PARTS, {"source_weights": {"pairs": 0.0, "web": 0.0}}, "every source has weight 0"),
        (PARTS, {"source_weights": {"pairs": -1.0}}, "must be a number of at least 0"),
        (PARTS, {"source_caps": {"pairs": 0}}, "at least 1, not 0"),
        (PARTS, {"epoch_rows": 4, "max_tokens_per_batch": 600}, "epoch_rows and max_tokens_per_batch both say"),
        (PARTS, {"source_weights": {"pairs": 1.0}, "batch_column": "id"}, "source_weights and batch_column both say"),
        (PARTS, {"epoch_rows": 4, "dataloader_drop_last": True}, "dataloader_drop_last must be off with epoch_rows"),
        (PARTS, {"epoch_rows": 4, "train_sampling_strategy": "group_by_length"}, "'group_by_length' does not go"),
        (PARTS["web"], {"epoch_rows": 4}, "are for named sources: give train_dataset="),
    ],
)
def test_refusals(rows: Any, changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, DataError), match=told):
        make_trainer(tmp_path, NextToken(), rows, **changes)


def shared_run(folder: Path, processes: int) -> dict[str, Any]:
    """Three rows an epoch on batches of two (of all processes): in the second step one of two ranks has none."""
    trainer = make_trainer(
        folder,
        NextToken(),
        PARTS,
        per_device_train_batch_size=2 // processes,
        source_weights={"pairs": 2, "web": 1},
        epoch_rows=3,
        max_steps=2,
        ddp_backend="gloo" if processes > 1 else None,
    )
    found = seen_rows(trainer)
    return {"gradients": gradients(trainer), "rows": found}


def streamed(folder: Path, processes: int) -> list[list[tuple[str, str]]]:
    """Rows of this process, batch by batch, of two streams in batches of four (of all processes)."""
    parts = {name: datasets.Dataset.from_list(pair_rows(4, images=False)).to_iterable_dataset() for name in "ab"}
    shares = {"source_weights": {"a": 1, "b": 3}, "epoch_rows": 8}
    trainer = make_trainer(folder, NextToken(), parts, per_device_train_batch_size=4 // processes, **shares)
    return [_rows(entry) for entry in trainer.get_train_dataloader()]


@pytest.mark.ddp
def test_two_processes_see_the_global_batches_of_one(tmp_path: Path) -> None:
    workers = start_ranks(__file__, tmp_path)
    alone = shared_run(tmp_path / "alone", 1)
    wait_for_ranks(workers)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    streams = streamed(tmp_path / "alone", 1)
    assert Counter(name for batch in streams for name, _ in batch) == {"a": 2, "b": 6}
    assert [a + b for a, b in zip(*(rank["streams"] for rank in ranks), strict=True)] == streams
    assert [len(batch) for batch in alone["rows"]] == [2, 1]
    assert [a + b for a, b in zip(*(rank["rows"] for rank in ranks), strict=True)] == alone["rows"]
    assert sorted(len(rank["rows"][1]) for rank in ranks) == [0, 1]
    for name, gradient in alone["gradients"].items():
        torch.testing.assert_close(ranks[0]["gradients"][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, rank_here = Path(sys.argv[1]), int(sys.argv[2])
    shared = shared_run(root / "together", 2)
    torch.save(shared | {"streams": streamed(root / "together", 2)}, root / f"{rank_here}.pt")
    torch.distributed.destroy_process_group()
