from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from launch import serve
from mllm_align.contract import Batch
from mllm_align.data.schema import DataError
from mllm_align.data.transport import few_storages
from mllm_align.families import family_of, unwrap
from mllm_align.objectives.next_token import NextToken
from mllm_align.objectives.svco import SVCO
from mllm_align.objectives.weighted import Weighted
from mllm_align.signals.plan import plan_groups
from runs import Headed, gradients, make_trainer, pair_rows, start_ranks, trained, wait_for_ranks

SOURCES = {"pairs": pair_rows(6), "instructions": pair_rows(5, images=False)}


def mixture() -> Weighted:
    return Weighted((SVCO(), 1.0, "pairs"), (NextToken(), 0.5, "instructions"))


def tensors_of(batch: Batch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    batch.map(lambda tensor: found.append(tensor) or tensor)
    return found


def assert_equal(left: Batch, right: Batch) -> None:
    assert (left.sources, left.row_ids, left.image_ids) == (right.sources, right.row_ids, right.image_ids)
    assert [(b.prefix, b.row, b.view) for b in left.branches] == [(b.prefix, b.row, b.view) for b in right.branches]
    assert [p.images for p in left.prefixes] == [p.images for p in right.prefixes]
    for ours, theirs in zip(tensors_of(left), tensors_of(right), strict=True):
        assert torch.equal(ours, theirs)


def test_batches_of_mixed_sources_stay_within_the_budget(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, mixture(), SOURCES, max_tokens_per_batch=600, max_steps=-1, num_train_epochs=2)
    loader = trainer.get_train_dataloader()
    model = unwrap(trainer.model)
    batches = [entry["batch"] for entry in loader]
    assert len(loader) == len(batches) > 1
    rows = [row for b in batches for row in zip(b.sources, b.row_ids, strict=True)]
    assert sorted(rows) == sorted((source, row["id"]) for source, part in SOURCES.items() for row in part)
    for batch in batches:
        groups = plan_groups(family_of(model), model, batch, trainer.options, reference=trainer.reference is not None)
        assert sum(group.inputs.input_ids.numel() for group in groups) <= 600
    trainer.train()
    assert trainer.state.global_step == 2 * len(batches)
    assert trainer.state.epoch == 2.0


def test_epochs_have_batches_of_their_own(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, NextToken(), pair_rows(12), max_tokens_per_batch=400)
    loader = trainer.get_train_dataloader()
    drawn = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        drawn.append([entry["batch"].row_ids for entry in loader])
    assert drawn[0] != drawn[1]
    assert drawn[0] == drawn[2]


@pytest.mark.parametrize(("accumulation", "workers", "budget"), [(1, 0, 250), (2, 2, 250), (1, 2, None)])
def test_resuming_finds_the_batches_that_come_next(
    tmp_path: Path, accumulation: int, workers: int, budget: int | None
) -> None:
    """From the middle of an epoch, over the beginning of the next, with dropout."""

    def run(**changes: Any) -> Any:
        settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "disable_dropout": False}
        settings |= {"gradient_accumulation_steps": accumulation, "max_tokens_per_batch": budget}
        settings |= {"dataloader_num_workers": workers, "save_total_limit": None}
        return make_trainer(
            tmp_path,
            Weighted((NextToken(), 1.0), (Headed(), 0.01)),
            pair_rows(9),
            adapter={"lora_dropout": 0.2},
            **(settings | changes),
        )

    whole = run()
    assert len(whole.get_train_dataloader()) % (2 * accumulation)
    whole.train()
    resumed = run()
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    found, expected = trained(resumed), trained(whole)
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (whole, resumed)]
    assert losses[0] == losses[1]


def test_what_cannot_be_batched_by_tokens_is_refused_before_training(tmp_path: Path) -> None:
    rows = pair_rows(3)
    rows[1] = {**rows[1], "chosen": "red " * 100}
    with pytest.raises(
        DataError, match=r"row 1 \(id '1'\) alone has \d+ tokens.*max_tokens_per_batch=150, and 1 of 3"
    ):
        make_trainer(tmp_path, NextToken(), rows, max_tokens_per_batch=150)
    stream = datasets.Dataset.from_list(pair_rows(2, images=False)).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"max_tokens_per_batch needs the length of every row.*stream"):
        make_trainer(tmp_path, NextToken(), stream, max_tokens_per_batch=200)
    with pytest.raises(ValueError, match=r"'group_by_length' does not go with max_tokens_per_batch"):
        make_trainer(tmp_path, NextToken(), rows, max_tokens_per_batch=900, train_sampling_strategy="group_by_length")


def test_dropped_rows_make_no_batches(tmp_path: Path) -> None:
    rows = [*pair_rows(3), {**pair_rows(4)[3], "chosen": "red " * 200}]
    settings = {"max_length": 150, "on_overflow": "drop", "max_tokens_per_batch": 150}
    trainer = make_trainer(tmp_path, NextToken(), rows, **settings)
    seen = [row for entry in trainer.get_train_dataloader() for row in entry["batch"].row_ids]
    assert sorted(seen) == ["0", "1", "2"]


@pytest.mark.parametrize("start", ["fork", "forkserver"])  # the second pickles all that a worker is given
def test_workers_make_the_same_batches(tmp_path: Path, start: str) -> None:
    serve()
    settings = {"max_tokens_per_batch": 600}
    alone = make_trainer(tmp_path, mixture(), SOURCES, **settings).get_train_dataloader()
    settings |= {"dataloader_num_workers": 2, "dataloader_multiprocessing_context": start}
    together = make_trainer(tmp_path, mixture(), SOURCES, **settings).get_train_dataloader()
    assert together.num_workers == 2
    for one, two in zip(alone, together, strict=True):
        assert_equal(one["batch"], two["batch"])
        # Every storage from a worker holds a file open.
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors_of(two["batch"])}) <= 2
    del together


def test_workers_of_the_loader_by_rows(tmp_path: Path) -> None:
    settings = {"train_sampling_strategy": "sequential"}
    alone = make_trainer(tmp_path, mixture(), SOURCES, **settings).get_train_dataloader()
    together = make_trainer(tmp_path, mixture(), SOURCES, dataloader_num_workers=2, **settings).get_train_dataloader()
    for one, two in zip(alone, together, strict=True):
        assert_equal(one["batch"], two["batch"])


def test_a_stream_gets_no_workers_that_nobody_asked_for(tmp_path: Path) -> None:
    stream = datasets.Dataset.from_list(pair_rows(4, images=False)).to_iterable_dataset()
    trainer = make_trainer(tmp_path, NextToken(), stream)
    trainer.args.dataloader_num_workers, trainer.args.dataloader_prefetch_factor = 2, 2
    trainer.args.dataloader_persistent_workers = True
    assert trainer.get_train_dataloader().num_workers == 0
    trainer.args.workers_by_default = False
    assert trainer.get_train_dataloader().num_workers == 2
    assert trainer.args.dataloader_num_workers == 2


def test_few_storages_change_no_tensor(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, NextToken(), pair_rows(3))
    batch = trainer.data_collator(pair_rows(3))["batch"]
    assert_equal(few_storages(batch), batch)
    empty = Batch((), (), (), (), (), ())
    assert few_storages(empty) == empty


def test_the_loader_pins_pixels_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU there is no page-locked memory; that torch asks the batch itself is what counts."""
    trainer = make_trainer(tmp_path, NextToken(), pair_rows(2))
    batch = trainer.data_collator(pair_rows(2))["batch"]
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self.clone())
    result = pin_memory({"batch": batch})["batch"]
    assert [tensor.data_ptr() for tensor in pinned] == [image["pixel_values"].data_ptr() for image in batch.images]
    assert_equal(result, batch)
    assert result.branches[0].token_ids is batch.branches[0].token_ids


def budget_run(folder: Path, processes: int) -> dict[str, Any]:
    """The first step over two batches of unequally many rows, and the rows of the whole epoch."""
    trainer = make_trainer(
        folder,
        mixture(),
        SOURCES,
        max_tokens_per_batch=700,
        gradient_accumulation_steps=2 // processes,
        train_sampling_strategy="sequential",
        max_steps=1,
        ddp_backend="gloo" if processes > 1 else None,
    )
    assert trainer.args.world_size == processes
    batches = [list(zip(e["batch"].sources, e["batch"].row_ids, strict=True)) for e in trainer.get_train_dataloader()]
    return {"gradients": gradients(trainer), "batches": batches, "rows": trainer._window.rows}


@pytest.mark.ddp
def test_two_processes_share_the_batches_of_one(tmp_path: Path) -> None:
    """Each has every other batch; the gradient of a step is that of one process with twice the accumulation."""
    workers = start_ranks(__file__, tmp_path)
    alone = budget_run(tmp_path / "alone", 1)
    wait_for_ranks(workers)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    batches = alone["batches"]
    assert len(batches) % 2 == 0
    assert len(batches[0]) != len(batches[1])
    assert [rank["batches"] for rank in ranks] == [batches[0::2], batches[1::2]]
    assert ranks[0]["rows"] == alone["rows"] == len(batches[0]) + len(batches[1])
    assert alone["gradients"]
    for name, gradient in alone["gradients"].items():
        torch.testing.assert_close(ranks[0]["gradients"][name], gradient, rtol=1e-5, atol=1e-6, msg=name)
        assert torch.equal(ranks[0]["gradients"][name], ranks[1]["gradients"][name]), name


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, rank_here = Path(sys.argv[1]), int(sys.argv[2])
    torch.save(budget_run(root / "together", 2), root / f"{rank_here}.pt")
    torch.distributed.destroy_process_group()
