"""A run with the reference from disk against one with the live reference, and what is computed when."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import mllm_align.trainers.precompute as precompute
from mllm_align.contract import Batch
from mllm_align.families import family_of
from mllm_align.objectives.dpo import DPO
from mllm_align.objectives.next_token import NextToken
from mllm_align.objectives.svco import SVCO
from mllm_align.objectives.weighted import Weighted
from mllm_align.signals import NamedAdapter, measure
from runs import gradients, make_trainer, pair_rows, picture, start_ranks, wait_for_ranks
from tiny import tiny

# Rows with two images, rows without one, rows that need no reference.
SOURCES = {"pairs": pair_rows(3), "texts": pair_rows(5, images=False)[3:], "instructions": pair_rows(2, images=False)}


def mixture() -> Weighted:
    return Weighted((SVCO(), 1.0, "pairs"), (DPO(), 1.0, "texts"), (NextToken(), 1.0, "instructions"))


def cached_trainer(folder: Path, objective: Any, rows: Any, **changes: Any) -> Any:
    """A trainer with the cache in `folder`/cache; a run folder of its own each time."""
    run = folder / f"run{len(list(folder.iterdir()))}"
    settings = {"precompute_ref_log_probs": True, "cache_dir": str(folder / "cache")} | changes
    return make_trainer(run, objective, rows, **settings)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of branches of each forward pass of the precomputation."""
    calls: list[int] = []
    original = precompute.ReferenceScorer._measure

    def counted(self: Any, batch: Batch) -> Any:
        calls.append(len(batch.branches))
        return original(self, batch)

    monkeypatch.setattr(precompute.ReferenceScorer, "_measure", counted)
    return calls


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_disk_and_live_reference_agree(family: str, tmp_path: Path) -> None:
    model, processor = tiny(family)
    trainer = cached_trainer(
        tmp_path, mixture(), SOURCES, model=model, processing_class=processor, precompute_ref_batch_size=3
    )
    live = trainer.reference
    trainer.model.train()
    modes: list[bool] = []
    decoder = family_of(model).module(model, family_of(model).language_model)
    hook = decoder.register_forward_hook(lambda module, *_: modes.append(module.training))
    trainer._precompute(trainer.train_dataset, "train_dataset")
    hook.remove()
    assert modes
    assert not any(modes)
    assert trainer.model.training
    batch = trainer.data_collator([trainer.train_dataset[index] for index in (6, 0, 4, 2, 5)])["batch"]
    assert batch.reference_rows == (False, True, True, True, False)
    with torch.no_grad():
        policy, expected = measure(trainer.model, batch, reference=live, tokens=True)
        again, found = measure(trainer.model, batch, reference=trainer.reference, tokens=True)
    for view in batch.views:
        torch.testing.assert_close(found.logps[view], expected.logps[view], atol=1e-5, rtol=0)
        assert torch.equal(found.num_tokens[view], expected.num_tokens[view])
        torch.testing.assert_close(
            found.token_logps[view].values, expected.token_logps[view].values, atol=1e-5, rtol=0
        )
        torch.testing.assert_close(again.logps[view], policy.logps[view], atol=1e-5, rtol=0)
        if found.num_tokens[view].sum():
            assert (found.logps[view] - policy.logps[view]).abs().max() > 1e-2


def test_a_run_is_the_same_and_calls_no_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"train_sampling_strategy": "sequential", "gradient_accumulation_steps": 2}
    plain = make_trainer(tmp_path / "plain", mixture(), SOURCES, max_steps=1, **settings)
    expected = gradients(plain)
    trainer = cached_trainer(tmp_path, mixture(), SOURCES, max_steps=1, **settings)
    trainer._precompute(trainer.train_dataset, "train_dataset")
    monkeypatch.setattr(trainer.model, "disable_adapter", lambda: pytest.fail("the reference was run"))
    found = gradients(trainer)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3, msg=name)
    losses = [run.state.log_history[0]["loss"] for run in (plain, trainer)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_autocast_scores_what_the_live_reference_would(tmp_path: Path) -> None:
    """The same batches, so the same roundings; a reference without autocast moves gradients by a hundredth."""
    settings = {"train_sampling_strategy": "sequential", "max_steps": 1}
    full = gradients(make_trainer(tmp_path / "full", SVCO(), pair_rows(2), **settings))
    live = gradients(make_trainer(tmp_path / "live", SVCO(), pair_rows(2), bf16=True, **settings))
    disk = gradients(
        cached_trainer(tmp_path, SVCO(), pair_rows(2), bf16=True, precompute_ref_batch_size=2, **settings)
    )
    assert disk.keys() == live.keys() == full.keys()
    for name, gradient in live.items():
        torch.testing.assert_close(
            disk[name] / gradient.abs().max(), gradient / gradient.abs().max(), atol=1e-4, rtol=0
        )
    assert max((full[name] - value).abs().max() / value.abs().max() for name, value in live.items()) > 1e-2


def test_a_second_run_computes_nothing(tmp_path: Path, scored: list[int]) -> None:
    first = cached_trainer(
        tmp_path, mixture(), SOURCES, max_steps=4, precompute_ref_batch_size=4, dataloader_num_workers=1
    )
    first.train()
    # Three pairs of six views; the first batch holds the first text row's two responses too.
    assert scored == [20, 2]
    assert len(first.reference.store) == 22
    second = cached_trainer(tmp_path, mixture(), SOURCES, learning_rate=1e-4, max_steps=1)
    second.train()
    assert scored == [20, 2]
    folders = list((tmp_path / "cache" / "reference").iterdir())
    assert len(folders) == 1
    about = json.loads((folders[0] / "cache.json").read_text())
    assert about["class"] == "LlavaForConditionalGeneration"
    assert "Log-probabilities" in about["what"]
    assert about["precision"] == "no"


def test_another_base_another_image_another_prompt_are_computed(tmp_path: Path, scored: list[int]) -> None:
    rows = pair_rows(2)
    cached_trainer(tmp_path, DPO(), rows, max_steps=1).train()
    assert scored == [4]
    changed = [{**rows[0], "image": picture(7)}, {**rows[1], "prompt": "What else?"}]
    cached_trainer(tmp_path, DPO(), [rows[1], *changed], max_steps=1, precompute_ref_batch_size=3).train()
    assert scored == [4, 4]
    model, processor = tiny("llava", seed=1)
    cached_trainer(tmp_path, DPO(), rows, max_steps=1, model=model, processing_class=processor).train()
    assert scored == [4, 4, 4]
    assert len(list((tmp_path / "cache" / "reference").iterdir())) == 2


def test_equal_content_is_scored_once(tmp_path: Path, scored: list[int]) -> None:
    """A pair's views without image are what the same rows without images would be, in any batch and dataset."""
    cached_trainer(tmp_path, SVCO(), [*pair_rows(2), *pair_rows(1)], precompute_ref_batch_size=3, max_steps=1).train()
    assert scored == [12]
    cached_trainer(tmp_path, DPO(), pair_rows(2, images=False), max_steps=1).train()
    assert scored == [12]


def test_a_killed_computation_goes_on_where_it_was(
    tmp_path: Path, scored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pair_rows(5)
    monkeypatch.setattr(precompute, "SHARD_BRANCHES", 4)
    trainer = cached_trainer(tmp_path, DPO(), rows, precompute_ref_batch_size=1)
    monkeypatch.setattr(trainer.data_collator, "collate", _until(trainer.data_collator.collate, 3))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert scored == [2, 2, 2]
    # The first two rows filled a shard; the third was written on the way out. A damaged shard is made again.
    shards = sorted((tmp_path / "cache").rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    assert len(shards) == 2
    cached_trainer(tmp_path, DPO(), rows, precompute_ref_batch_size=1, max_steps=1).train()
    assert scored == [2] * 5
    shards[0].write_bytes(shards[0].read_bytes()[:-1])
    cached_trainer(tmp_path, DPO(), rows, precompute_ref_batch_size=1, max_steps=1).train()
    assert scored == [2] * 6


def _until(collate: Any, count: int) -> Any:
    """Collates a number of times, and then is interrupted."""
    calls: list[int] = []

    def interrupted(rows: Any) -> Any:
        calls.append(1)
        if len(calls) > count:
            raise KeyboardInterrupt
        return collate(rows)

    return interrupted


def test_evaluation_data_is_scored_before_training_and_new_data_when_it_comes(
    tmp_path: Path, scored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"a": pair_rows(1), "b": pair_rows(4, images=False)[2:]}
    plain = make_trainer(tmp_path / "plain", DPO(), pair_rows(2), eval_dataset=data, max_steps=1)
    trainer = cached_trainer(tmp_path, DPO(), pair_rows(2), eval_dataset=data, max_steps=1)
    before, expected = trainer.evaluate(), plain.evaluate()
    assert scored == [2, 4]
    trainer.train()
    assert scored == [2, 4, 2]  # one of the training rows is an evaluation row
    plain.train()
    fresh = [{**row, "source": "default"} for row in pair_rows(6)[4:]]
    pairs = [(before, expected), (trainer.evaluate(), plain.evaluate())]
    pairs.append((trainer.evaluate(fresh), plain.evaluate(fresh)))
    assert scored == [2, 4, 2, 4]
    with monkeypatch.context() as patched:
        patched.setattr(trainer._scorer, "_loader", lambda *_: pytest.fail("the same data was read again"))
        trainer.evaluate()
    for ours, theirs in pairs:
        for name, value in theirs.items():
            if not any(mark in name for mark in ("time", "second", "preparation")):
                assert ours[name] == pytest.approx(value, abs=1e-5), name


def test_a_frozen_copy_is_let_go(tmp_path: Path, scored: list[int]) -> None:
    trainer = cached_trainer(tmp_path, DPO(), pair_rows(2), adapter=None, max_steps=2, learning_rate=1e-4)
    plain = make_trainer(tmp_path / "plain", DPO(), pair_rows(2), adapter=None, max_steps=2, learning_rate=1e-4)
    copy = weakref.ref(trainer.reference.model)
    trainer.train()
    gc.collect()
    assert copy() is None
    assert scored == [4]
    plain.train()
    for ours, theirs in zip(trainer.state.log_history, plain.state.log_history, strict=True):
        if "loss" in theirs:
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
    with pytest.raises(ValueError, match=r"row '3', view chosen\|image.*eval_dataset"):
        trainer.evaluate(pair_rows(4)[3:])


def test_a_frozen_copy_sees_with_its_own_eyes(tmp_path: Path) -> None:
    """The policy's image tokens are kept; those of a reference with another vision tower are not taken from there."""
    model, processor = tiny("llava")
    for module in family_of(model).vision_modules(model):
        module.requires_grad_(False)
    other, _ = tiny("llava", seed=1)
    given = {"adapter": None, "model": model, "processing_class": processor, "ref_model": other}
    trainer = cached_trainer(tmp_path, DPO(), pair_rows(2), cache_image_features=True, **given)
    batch = trainer.data_collator(pair_rows(2))["batch"]
    with torch.no_grad():
        policy, _ = measure(trainer.model, batch, options=trainer.options)
        expected, _ = measure(other, batch)
        trainer._precompute(trainer.train_dataset, "train_dataset")
        again, found = measure(trainer.model, batch, reference=trainer.reference, options=trainer.options)
    for view in batch.views:
        torch.testing.assert_close(found.logps[view], expected.logps[view], atol=1e-5, rtol=0)
        assert torch.equal(again.logps[view], policy.logps[view])


def test_a_named_adapter_has_a_store_of_its_own(tmp_path: Path, scored: list[int]) -> None:
    trainer = cached_trainer(tmp_path, DPO(), pair_rows(2), ref_model=NamedAdapter("default"), max_steps=1)
    trainer.train()
    cached_trainer(tmp_path, DPO(), pair_rows(2), max_steps=1).train()
    assert scored == [4, 4]
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert len(list((tmp_path / "cache" / "reference").iterdir())) == 2
    with pytest.raises(ValueError, match="not scored under the reference before"):
        # The adapter has moved: it must not be scored now under the name of what it was.
        trainer.evaluate(pair_rows(4)[3:])
    assert scored == [4, 4]


class Redrawn:
    """Pairs whose contrast image is another one each time."""

    def __init__(self) -> None:
        self.draws = 200

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.draws += 1
        return {**pair_rows(2)[index], "contrast_image": picture(self.draws)}


def test_a_redrawn_image_is_refused_by_the_name_of_its_row(tmp_path: Path) -> None:
    trainer = cached_trainer(tmp_path, SVCO(), Redrawn(), train_sampling_strategy="sequential")
    with pytest.raises(ValueError, match=r"row '0', view chosen\|contrast_image.*drawn anew each epoch, draw it once"):
        trainer.train()


def test_a_bar_shows_how_far_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trainer = cached_trainer(tmp_path, DPO(), pair_rows(3), disable_tqdm=False, max_steps=1)
    trainer._precompute(trainer.train_dataset, "train_dataset")
    shown = capfd.readouterr().err
    assert "reference, train_dataset: 100%" in shown
    assert "3/3" in shown
    cached_trainer(tmp_path, DPO(), pair_rows(3))._precompute(trainer.train_dataset, "train_dataset")
    assert "reference" not in capfd.readouterr().err


def measure_run(folder: Path, processes: int) -> dict[str, Any]:
    """Gradients of the first step over four rows, with what this process scored for it."""
    calls: list[int] = []
    original = precompute.ReferenceScorer._measure

    def counted(self: Any, batch: Batch) -> Any:
        calls.append(len(batch.branches))
        return original(self, batch)

    precompute.ReferenceScorer._measure = counted  # type: ignore[method-assign]
    trainer = make_trainer(
        folder / "run",
        SVCO(),
        pair_rows(4),
        eval_dataset=pair_rows(5)[4:],
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=1,
        cache_dir=str(folder / "cache"),
        per_device_train_batch_size=4 // processes,
        train_sampling_strategy="sequential",
        max_steps=1,
        ddp_backend="gloo" if processes > 1 else None,
    )
    found = gradients(trainer)
    precompute.ReferenceScorer._measure = original  # type: ignore[method-assign]
    return {"gradients": found, "scored": calls, "entries": len(trainer.reference.store)}


@pytest.mark.ddp
def test_two_processes_share_the_work_and_the_result(tmp_path: Path) -> None:
    ranks = start_ranks(__file__, tmp_path / "together")
    alone = measure_run(tmp_path / "alone", 1)
    wait_for_ranks(ranks)
    assert alone["scored"] == [6] * 5
    found = [torch.load(tmp_path / "together" / f"{rank}.pt", weights_only=False) for rank in range(2)]
    assert [one["scored"] for one in found] == [[6] * 3, [6] * 2]
    assert [one["entries"] for one in found] == [30, 30]
    for name, gradient in alone["gradients"].items():
        torch.testing.assert_close(found[0]["gradients"][name], gradient, rtol=1e-4, atol=1e-5, msg=name)
        assert torch.equal(found[0]["gradients"][name], found[1]["gradients"][name])


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, rank_here = Path(sys.argv[1]), int(sys.argv[2])
    result = measure_run(root, 2)
    torch.save(result, root / f"{rank_here}.pt")
    torch.distributed.destroy_process_group()
