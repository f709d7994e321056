"""Batches that are mined: of rows that are near by now, the same on all ranks and after resuming."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from mllm_align.data.schema import DataError
from mllm_align.objectives.info_nce import InfoNCE
from mllm_align.objectives.next_token import NextToken
from mllm_align.objectives.weighted import Weighted
from mllm_align.trainers.mined_batches import MINED_FILE, MinedBatches, bind
from mllm_align.trainers.neighbourhood import nowhere
from runs import make_trainer, pair_rows, start_ranks, trained, wait_for_ranks

COUNT = 12


def rows(count: int = COUNT) -> list[dict[str, Any]]:
    """Rows of texts and pictures of their own, but the last, which shows the picture of the first."""
    made = pair_rows(count)
    for number, row in enumerate(made):
        row |= {"chosen": f"{row['chosen']} {number}", "cluster": number % 3, "scene": str(number % (count - 1))}
    made[-1]["image"] = made[0]["image"]
    return made


class Asked:
    """A miner that notes when it was asked: rows whose numbers differ little are near, each time in another order."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.epochs: list[int] = []

    def __call__(self, epoch: int, near: int) -> np.ndarray:
        self.epochs.append(epoch)
        rng = np.random.default_rng(len(self.epochs))
        return np.argsort(np.abs(np.subtract.outer(range(self.count), range(self.count))) + rng.random(), 1)[
            :, 1 : near + 1
        ]


def sampler(asked: Any, rank: int = 0, num_ranks: int = 1, **changes: Any) -> MinedBatches:
    settings: dict[str, Any] = {"first": nowhere(40), "every": 2, "per_seed": 4} | changes
    made = MinedBatches(np.arange(40), 4, rank=rank, num_ranks=num_ranks, **settings)
    made.miner = asked
    return made


def drawn(made: MinedBatches, epoch: int) -> list[list[int]]:
    made.set_epoch(epoch)
    return list(made)


def test_ranks_share_each_batch() -> None:
    for num_ranks in (2, 3):
        ranks = [sampler(Asked(40), rank, num_ranks) for rank in range(num_ranks)]
        for epoch in range(3):
            own = [drawn(each, epoch) for each in ranks]
            whole = ranks[0].batches(epoch)
            assert {len(batches) for batches in own} == {len(ranks[0])} == {len(whole)}
            assert all(0 < len(batch) <= 4 for batches in own for batch in batches)
            for step, expected in enumerate(whole):
                assert [row for batches in own for row in batches[step]] == expected.tolist()
            assert sorted(np.concatenate(whole).tolist()) == list(range(40))


def test_it_is_asked_every_few_epochs_and_draws_anew_between() -> None:
    asked = Asked(40)
    made = sampler(asked)
    epochs = [drawn(made, epoch) for epoch in range(6)]
    assert asked.epochs == [2, 4]
    assert len({str(each) for each in epochs}) == 6
    spread = [np.mean([np.ptp(batch) for batch in batches]) for batches in epochs]
    assert max(spread[2:]) < min(spread[:2]) / 2
    assert drawn(made, 5) == epochs[5]
    asked = Asked(40)
    drawn(sampler(asked, first=None), 0)
    drawn(sampler(asked, every=None), 5)
    assert asked.epochs == [0]


def test_what_was_mined_goes_with_a_checkpoint(tmp_path: Path) -> None:
    whole = sampler(Asked(40))
    epochs = [drawn(whole, epoch) for epoch in range(4)]
    whole.save(str(tmp_path))
    resumed = sampler(None)
    resumed.load(str(tmp_path))
    assert [drawn(resumed, 2), drawn(resumed, 3)] == epochs[2:]
    with pytest.raises(ValueError, match=r"batches of epoch 5 are mined at the beginning of epoch 4, from weights"):
        resumed.batches(5)
    fresh = sampler(Asked(40))
    drawn(fresh, 1)
    fresh.save(str(tmp_path))
    resumed.load(str(tmp_path))
    assert drawn(resumed, 1) == epochs[1]
    with pytest.raises(ValueError, match="batches of epoch 2 are mined"):
        resumed.batches(2)


@pytest.mark.parametrize(("changes", "num_ranks"), [({"every": 3}, 1), ({}, 2)])
def test_a_checkpoint_of_other_batches_is_refused(changes: dict[str, Any], num_ranks: int, tmp_path: Path) -> None:
    made = sampler(Asked(40))
    drawn(made, 2)
    made.save(str(tmp_path))
    with pytest.raises(ValueError, match="mined for other rows, batch sizes or processes, or at other epochs"):
        sampler(None, num_ranks=num_ranks, **changes).load(str(tmp_path))
    with pytest.raises(ValueError, match="was made without mined batches"):
        made.load(str(tmp_path / "elsewhere"))


def test_more_processes_than_a_batch_has_rows_are_refused() -> None:
    keys = np.array([0] * 9 + [1])
    with pytest.raises(ValueError, match=r"10 rows make 9 batches, of fewer rows than 2 processes: up to 9 rows"):
        MinedBatches(keys, 4, first=None, every=1, per_seed=2, num_ranks=2)


def objective() -> InfoNCE:
    return InfoNCE(image_prompt="The picture in one word:", text_prompt="The text in one word:", dim=8)


def run(folder: Path, **changes: Any) -> Any:
    settings = {"mine_batches_every": 1, "per_device_train_batch_size": 4, "max_steps": -1, "num_train_epochs": 3}
    return make_trainer(folder, objective(), rows(), **(settings | changes))


def seen_by(trainer: Any, **changes: Any) -> list[tuple[str, ...]]:
    """The rows of each training step."""
    seen: list[tuple[str, ...]] = []
    step = trainer.training_step

    def record(model: Any, inputs: Any, *args: Any) -> Any:
        seen.append(inputs["batch"].row_ids)
        return step(model, inputs, *args)

    trainer.training_step = record
    trainer.train(**changes)
    return seen


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_has_the_batches_that_come_next(workers: int, tmp_path: Path) -> None:
    """From amid an epoch whose batches were mined with weights that are gone, and from the beginning of one."""
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "mine_batches_neighbours": 3}
    settings |= {"dataloader_num_workers": workers}
    whole = run(tmp_path, **settings)
    seen = seen_by(whole)
    assert len(seen) == 9
    for epoch in range(3):
        assert sorted(row for batch in seen[3 * epoch : 3 * epoch + 3] for row in batch) == sorted(map(str, range(12)))
    assert all(not {"0", "11"} <= set(batch) for batch in seen)  # they show one picture
    for begin in (4, 6) if workers == 0 else (7,):
        resumed = run(tmp_path, **settings)
        torch.manual_seed(99)
        assert seen_by(resumed, resume_from_checkpoint=str(tmp_path / f"checkpoint-{begin}")) == seen[begin:]
        expected = trained(whole)
        for name, value in trained(resumed).items():
            assert torch.equal(value, expected[name]), name
    whole.save_model(str(tmp_path / "out"))
    assert not (tmp_path / "out" / MINED_FILE).exists()


def test_mining_changes_nothing_of_a_run(tmp_path: Path) -> None:
    trainer = run(tmp_path, disable_dropout=False)
    bind(trainer.sampler, trainer)
    trainer.model.train()
    before = trained(trainer)
    state = torch.get_rng_state()
    trainer.sampler.batches(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert trainer.model.training
    assert all(torch.equal(value, before[name]) for name, value in trained(trainer).items())


def test_first_batches_are_of_what_is_given(tmp_path: Path) -> None:
    trainer = run(tmp_path, mine_batches_from="cluster", mine_batches_every=None, mine_batches_id="scene")
    batches = [entry["batch"].row_ids for entry in trainer.get_train_dataloader()]
    # One batch has none of rows 0 and 11, which are of one scene, in two clusters.
    assert sum(len({int(row) % 3 for row in batch}) == 1 for batch in batches) >= 1
    alone = make_trainer(
        tmp_path, NextToken(), rows()[:-1], mine_batches_from="cluster", per_device_train_batch_size=3
    )
    assert len(alone.get_train_dataloader()) == 4


def test_a_value_of_most_rows_makes_small_batches_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = [{**row, "kind": str(max(0, number - COUNT + 3))} for number, row in enumerate(rows())]
    for column, told in (("id", 0), ("kind", 1)):
        made = make_trainer(
            tmp_path, NextToken(), data, mine_batches_from="cluster", mine_batches_id=column,
            per_device_train_batch_size=4,
        ).sampler  # fmt: skip
        assert caplog.text.count("no two of them come in one batch") == told
    assert made.count == COUNT - 2
    assert f"have {COUNT / (COUNT - 2):.1f} rows in place of 4: {COUNT - 2} rows are of one picture" in caplog.text


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"batch_column": "cluster"}, ValueError, "mine_batches_every and batch_column both say which rows"),
        ({"max_tokens_per_batch": 600}, ValueError, "mine_batches_every and max_tokens_per_batch both say"),
        ({"dataloader_drop_last": True}, ValueError, "dataloader_drop_last does not go with mine_batches_every"),
        ({"train_sampling_strategy": "sequential"}, ValueError, "'sequential' does not go with mine_batches_every"),
        ({"mine_batches_every": 3}, ValueError, "mine_batches_every=3 mines nothing in 3 epochs"),
        ({"mine_batches_every": None, "mine_batches_from": "model"}, ValueError, "say with mine_batches_every after"),
        ({"mine_batches_every": 0}, ValueError, "mine_batches_every must be at least 1"),
        ({"mine_batches_neighbours": 0}, ValueError, "mine_batches_neighbours must be at least 1"),
        ({"mine_batches_from": "place"}, DataError, "nothing in column 'place', which mine_batches_from names"),
        ({"mine_batches_every": None, "mine_batches_id": "scene"}, ValueError, "mine_batches_id tells rows apart"),
    ],
)
def test_what_does_not_go_with_it(changes: dict[str, Any], error: type, told: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=told):
        run(tmp_path, **changes)


def test_data_and_objectives_that_do_not_go_with_it(tmp_path: Path) -> None:
    stream = datasets.Dataset.from_list(pair_rows(2, images=False)).to_iterable_dataset()
    with pytest.raises(ValueError, match="load the training data without streaming"):
        make_trainer(tmp_path, objective(), stream, mine_batches_every=1)
    with pytest.raises(ValueError, match="NextToken embeds nothing that rows could be compared by"):
        make_trainer(tmp_path, NextToken(), rows(), mine_batches_every=1)
    apart = Weighted((objective(), 1.0, "pairs"), (NextToken(matched=False), 1.0, "instructions"))
    with pytest.raises(ValueError, match="of source 'instructions' the objective embeds no images and texts"):
        make_trainer(tmp_path, apart, {"pairs": rows(), "instructions": rows()}, mine_batches_every=1)
    both = Weighted((objective(), 1.0), (NextToken(matched=False), 1.0))
    assert make_trainer(tmp_path, both, rows(), mine_batches_every=1).sampler.every == 1
    with pytest.raises(ValueError, match="leave source_weights, epoch_rows and redraw_caps out"):
        make_trainer(tmp_path, objective(), {"a": rows()}, mine_batches_every=1, epoch_rows=4)


def of_rank(folder: Path) -> tuple[list[tuple[str, ...]], list[list[str]], list[tuple[str, ...]]]:
    """What this rank of two sees, the batches of both by its sampler, and what it sees when resumed."""
    settings: dict[str, Any] = {"per_device_train_batch_size": 2, "ddp_backend": "gloo", "num_train_epochs": 2}
    settings |= {"save_strategy": "steps", "save_steps": 5, "save_total_limit": None}
    trainer = run(folder, **settings)
    assert trainer.args.world_size == 2
    seen = seen_by(trainer)
    batches = [list(map(str, own.tolist())) for own in trainer.sampler.batches(1)]
    resumed = run(folder, **settings)
    return seen, batches, seen_by(resumed, resume_from_checkpoint=str(folder / "checkpoint-5"))


@pytest.mark.ddp
def test_two_processes_mine_and_see_the_same_batches(tmp_path: Path) -> None:
    wait_for_ranks(start_ranks(__file__, tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    assert ranks[0]["batches"] == ranks[1]["batches"]
    for step, batch in enumerate(ranks[0]["batches"]):
        assert [row for rank in ranks for row in rank["seen"][3 + step]] == batch
    for rank in ranks:
        assert rank["resumed"] == rank["seen"][5:]


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, here = Path(sys.argv[1]), int(sys.argv[2])
    seen, batches, resumed = of_rank(root / "together")
    torch.save({"seen": seen, "batches": batches, "resumed": resumed}, root / f"{here}.pt")
    torch.distributed.destroy_process_group()
