"""Made contrast images in whole runs: who sees which draw, and where there can be only one."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_align.contract import View
from mllm_align.data.corrupt import Crop, Mirror, Swap, corrupted
from mllm_align.data.mixing import mix_sources
from mllm_align.models import ModelArguments, lora_config
from mllm_align.objectives.dpo import DPO
from mllm_align.objectives.mdpo import MDPO
from mllm_align.objectives.next_token import NextToken
from mllm_align.objectives.svco import SVCO
from mllm_align.objectives.weighted import Weighted
from mllm_align.trainers import AlignTrainer
from mllm_align.trainers.draws import settle_draws
from runs import config, make_trainer, pair_rows, start_ranks, trained, wait_for_ranks
from tiny import tiny

CROPPED = View("contrast_image", "chosen")
Draw = dict[str, str]


def own_rows(count: int) -> list[dict[str, Any]]:
    """Rows with an image of their own alone."""
    return [{name: value for name, value in row.items() if name != "contrast_image"} for row in pair_rows(count)]


def sources(count: int = 4) -> dict[str, Any]:
    return {"pairs": corrupted(own_rows(count), Crop()), "instructions": pair_rows(3, images=False)}


def mixture() -> Weighted:
    return Weighted((MDPO(), 1.0, "pairs"), (NextToken(), 1.0, "instructions"))


def draws_of(batch: Any) -> Draw:
    """The id of the contrast image of every row that has one."""
    found = {}
    for branch in batch.branches:
        if branch.view == CROPPED:
            found[batch.row_ids[branch.row]] = batch.image_ids[batch.prefixes[branch.prefix].images[0]]
    return found


def epochs_of(trainer: Any, count: int = 3) -> list[Draw]:
    loader = trainer.get_train_dataloader()
    found: list[Draw] = []
    for epoch in range(count):
        loader.set_epoch(epoch)
        found.append({})
        for entry in loader:
            found[-1] |= draws_of(entry["batch"])
    return found


def settled(args: Any, train: Any = None, evaluation: Any = None) -> Any:
    return settle_draws(args, MDPO(), train, evaluation)


@pytest.mark.parametrize("budget", [None, 700])
def test_every_epoch_has_draws_of_its_own_whoever_makes_them(tmp_path: Path, budget: int | None) -> None:
    def run(**changes: Any) -> list[Draw]:
        return epochs_of(make_trainer(tmp_path, mixture(), sources(), max_tokens_per_batch=budget, **changes))

    alone = run()
    assert [sorted(draw) for draw in alone] == [["0", "1", "2", "3"]] * 3
    assert len({image for draw in alone for image in draw.values()}) == 12
    assert run(dataloader_num_workers=1, dataloader_persistent_workers=True) == alone
    assert run(train_sampling_strategy="sequential") == alone
    assert run(data_seed=1)[0].values() != alone[0].values()


def test_the_plain_loader_of_rows_without_draws_is_what_it_was(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, DPO(), pair_rows(4))
    loader = trainer.get_train_dataloader()
    assert all(isinstance(index, int) for batch in loader.batch_sampler for index in batch)
    assert len(loader) == 2


def test_policy_and_reference_see_the_same_crop(tmp_path: Path) -> None:
    """Else mDPO would not begin at 3 log 2: its own code draws one crop for each."""
    model, processor = tiny("llava")
    adapter = lora_config(model, ModelArguments(lora_r=4))
    rows = corrupted(own_rows(4), Crop())
    args = config(tmp_path, max_steps=1)
    trainer = AlignTrainer(
        model, MDPO(), args, processing_class=processor, train_dataset=rows, eval_dataset=rows, peft_config=adapter
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(3 * math.log(2), abs=1e-5)


@pytest.mark.parametrize(("workers", "accumulation", "budget"), [(1, 2, None), (0, 1, 700)])
def test_resuming_in_the_second_epoch_goes_on_with_its_draws(
    tmp_path: Path, workers: int, accumulation: int, budget: int | None
) -> None:
    settings = {
        "num_train_epochs": 3,
        "max_steps": -1,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": None,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": accumulation,
        "dataloader_num_workers": workers,
        "max_tokens_per_batch": budget,
    }

    def run() -> Any:
        return make_trainer(tmp_path, mixture(), sources(6), **settings)

    whole = run()
    whole.train()
    per_epoch = whole.state.global_step // 3
    assert per_epoch > 1
    resumed = run()
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{per_epoch + 1}"))
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (whole, resumed)]
    assert losses[0] == losses[1]
    found, expected = trained(resumed), trained(whole)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_evaluation_always_sees_the_same(tmp_path: Path) -> None:
    rows = corrupted(own_rows(3), Crop())
    trainer = make_trainer(tmp_path, MDPO(), rows, eval_dataset={"held": rows})
    assert not trainer.eval_dataset["held"].by_epoch
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first["eval_held_loss"] == second["eval_held_loss"]
    assert trainer.train_dataset.by_epoch
    assert rows.draws.seed == 0


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("precompute_ref_log_probs", "precompute_ref_log_probs scores them before training"),
        ("cache_pixels", "cache_pixels would keep all of them"),
        ("cache_image_features", "cache_image_features would keep all of them"),
    ],
)
def test_what_is_kept_is_drawn_once_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, setting: str, reason: str
) -> None:
    args = config(tmp_path, **{setting: True})
    with caplog.at_level(logging.WARNING):
        train, evaluation = settled(args, mix_sources(sources()), None)
    assert not train.by_epoch
    assert evaluation is None
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("contrast images of source 'pairs' by Crop(")
    assert f"drawn once, not anew in every epoch: {reason}" in message
    caplog.clear()
    quiet = corrupted(own_rows(2), Crop(), redraw=False), corrupted(own_rows(2), Mirror()), pair_rows(2)
    for rows in quiet:
        settled(args, rows)
    settled(args, None, corrupted(own_rows(2), Crop()))
    assert not caplog.records


def test_images_of_another_size_are_drawn_once_where_batches_are_filled_by_tokens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = config(tmp_path, max_tokens_per_batch=500)
    for corruption, anew in ((Swap(), False), (Crop(), True)):
        assert settled(args, corrupted(own_rows(2), corruption))[0].by_epoch == anew
    assert "max_tokens_per_batch needs to know how many tokens they have" in caplog.text
    assert caplog.text.count("drawn once") == 1


@pytest.mark.parametrize(
    ("objective", "warned"),
    [
        (SVCO(), True),
        (NextToken(), True),
        (NextToken(matched=False), False),
        (MDPO(), False),
        (Weighted((MDPO(), 1.0, "pairs"), (NextToken(), 1.0, "instructions")), False),
    ],
)
def test_a_crop_is_not_what_the_rejected_response_is_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, objective: Any, warned: bool
) -> None:
    for source in ("", "pairs"):
        caplog.clear()
        rows = corrupted(own_rows(2), Crop())
        settle_draws(config(tmp_path), objective, mix_sources({source: rows}) if source else rows, None)
        assert ("takes the rejected response for right" in caplog.text) == warned
    settle_draws(config(tmp_path), objective, corrupted(own_rows(2), Mirror()), None)
    assert "Mirror" not in caplog.text


def test_the_seed_is_that_of_the_run(tmp_path: Path) -> None:
    rows = corrupted(own_rows(2), Crop())
    assert settled(config(tmp_path, seed=5), rows)[0].draws.seed == 5
    train, evaluation = settled(config(tmp_path, data_seed=6), rows, {"a": rows})
    assert train.draws.seed == evaluation["a"].draws.seed == 6
    assert settled(config(tmp_path), pair_rows(1), pair_rows(1)) == (pair_rows(1), pair_rows(1))


def test_a_reference_on_disk_is_of_the_very_images_that_train(tmp_path: Path) -> None:
    """Over two epochs nothing is missing there, and every loss is the one with the live reference."""
    once = {"pairs": corrupted(own_rows(4), Crop(), redraw=False)}
    objective = Weighted((MDPO(), 1.0, "pairs"))
    live = make_trainer(tmp_path / "live", objective, once, max_steps=4)
    live.train()
    anew = {"pairs": corrupted(own_rows(4), Crop())}
    settings = {"precompute_ref_log_probs": True, "cache_dir": str(tmp_path / "cache")}
    kept = make_trainer(tmp_path / "kept", objective, anew, max_steps=4, **settings)
    kept.train()
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (live, kept)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def seen_by_rank(folder: Path, resume: str | None = None) -> tuple[list[Draw], Any]:
    """What this rank of two sees at each step of two epochs of two steps, and the trainer."""
    trainer = make_trainer(
        folder,
        MDPO(),
        corrupted(own_rows(4), Crop()),
        per_device_train_batch_size=1,
        max_steps=4,
        save_strategy="steps",
        save_steps=3,
        ddp_backend="gloo",
    )
    assert trainer.args.world_size == 2
    seen: list[Draw] = []
    step = trainer.training_step

    def record(model: Any, inputs: Any, *args: Any) -> Any:
        seen.append(draws_of(inputs["batch"]))
        return step(model, inputs, *args)

    trainer.training_step = record
    trainer.train(resume_from_checkpoint=resume)
    return seen, trainer


@pytest.mark.ddp
def test_two_processes_share_rows_and_draws_also_when_resumed(tmp_path: Path) -> None:
    workers = start_ranks(__file__, tmp_path)
    alone = epochs_of(make_trainer(tmp_path / "alone", MDPO(), corrupted(own_rows(4), Crop())), 2)
    wait_for_ranks(workers)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    for epoch, expected in enumerate(alone):
        together = [draw for rank in ranks for draw in rank["whole"][2 * epoch : 2 * epoch + 2]]
        assert sum(map(len, together)) == len(expected) == 4
        assert {row: image for draw in together for row, image in draw.items()} == expected
    for rank in ranks:
        assert rank["resumed"] == rank["whole"][3:]
        assert rank["equal"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, rank_here = Path(sys.argv[1]), int(sys.argv[2])
    whole, first = seen_by_rank(root / "together")
    resumed, second = seen_by_rank(root / "together", str(root / "together" / "checkpoint-3"))
    weights = trained(first)
    equal = all(torch.equal(value, weights[name]) for name, value in trained(second).items())
    torch.save({"whole": whole, "resumed": resumed, "equal": equal}, root / f"{rank_here}.pt")
    torch.distributed.destroy_process_group()
