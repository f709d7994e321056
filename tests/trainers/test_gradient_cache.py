"""Training with cached gradients is training without: same gradients, same weights, also over two processes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_align.contract import Feature, Needs, Objective, Outcome, Signals, Term
from mllm_align.families import family_of
from mllm_align.objectives import CHIP, DPO, SVCO, InfoNCE, NextToken, Weighted
from mllm_align.trainers import AlignTrainer
from runs import config, gradients, lora, make_trainer, pair_rows
from tiny import tiny


def weights_after(objective: Objective, folder: Path, **changes: Any) -> tuple[dict[str, torch.Tensor], list[Any]]:
    model, processor = tiny("llava")
    torch.manual_seed(0)
    trainer = AlignTrainer(
        model,
        objective,
        config(folder, optim="sgd", **changes),
        processing_class=processor,
        train_dataset=pair_rows(8),
        peft_config=lora(model, lora_scope=["language", "projector", "vision"]),
    )
    trainer.train()
    found = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    own = dict(objective.named_parameters()) if isinstance(objective, torch.nn.Module) else {}
    return found | {name: p.detach().clone() for name, p in own.items()}, trainer.state.log_history


OBJECTIVES = {
    "svco": SVCO,
    "dpo": DPO,
    "chip": CHIP,
    "info_nce": InfoNCE,
    "both": lambda: Weighted((InfoNCE(), 1.0), (NextToken(), 0.5), (DPO(), 0.3)),
}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_weights_are_the_same(name: str, accumulation: int, tmp_path: Path) -> None:
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": accumulation, "max_steps": 2}
    plain, log = weights_after(OBJECTIVES[name](), tmp_path / "plain", **settings)
    cached, other_log = weights_after(
        OBJECTIVES[name](), tmp_path / "cached", **settings, cache_gradients=True, max_tokens_per_forward=60
    )
    start, _ = weights_after(OBJECTIVES[name](), tmp_path / "start", **settings | {"learning_rate": 0.0})
    assert plain.keys() == cached.keys()
    for key, value in plain.items():
        step = (value - start[key]).abs().max()
        torch.testing.assert_close(cached[key], value, atol=1e-3 * step.item() + 1e-7, rtol=0, msg=key)
    assert any((value - start[key]).abs().max() > 1e-4 for key, value in plain.items())
    for one, other in zip(log[:-1], other_log[:-1], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4, abs=1e-6)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_a_term_that_moves_nothing_is_refused(tmp_path: Path) -> None:
    class Idle(DPO):
        def __call__(self, policy: Any, reference: Any) -> Any:
            return (
                super()
                .__call__(policy.select(range(len(policy.sources))), reference)
                .__class__(tuple(t._replace(sum=t.sum.detach()) for t in super().__call__(policy, reference).terms))
            )

    with pytest.raises(ValueError, match="reaches no parameter"):
        weights_after(Idle(), tmp_path, cache_gradients=True)


class Likeness(torch.nn.Module):
    """Reads images alone: the row's own and its contrast image should look alike."""

    needs = Needs(features=(Feature("own", "projector", "image"), Feature("other", "projector", "contrast_image")))

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        own, other = policy.features["own"].values, policy.features["other"].values
        return Outcome((Term("likeness", 1.0, (own - other).square().mean(1).sum(), torch.tensor(len(own))),))


def test_an_objective_of_images_alone_trains(tmp_path: Path) -> None:
    settings = {"per_device_train_batch_size": 8, "max_steps": 2, "logging_steps": 1}
    found = {
        cached: weights_after(Likeness(), tmp_path / str(cached), **settings, cache_gradients=cached)
        for cached in (False, True)
    }
    log = found[False][1]
    assert log[0]["loss/likeness"] > 1e-3
    assert log[1]["loss/likeness"] < log[0]["loss/likeness"]
    for key, value in found[False][0].items():
        torch.testing.assert_close(found[True][0][key], value, atol=1e-6, rtol=1e-4, msg=key)


def test_passes_run_again_under_autocast(tmp_path: Path) -> None:
    """The same passes with the same roundings; bfloat16 gradients are added up in another order, no more."""
    settings = {"train_sampling_strategy": "sequential", "max_steps": 1}
    full = gradients(make_trainer(tmp_path / "full", SVCO(), pair_rows(2), **settings))
    plain = gradients(make_trainer(tmp_path / "plain", SVCO(), pair_rows(2), bf16=True, **settings))
    given = {"bf16": True, "cache_gradients": True, **settings}
    cached = gradients(make_trainer(tmp_path / "cached", SVCO(), pair_rows(2), **given))
    assert cached.keys() == plain.keys() == full.keys()

    def farthest(found: dict[str, torch.Tensor]) -> float:
        return max(((found[name] - value).abs().max() / value.abs().max()).item() for name, value in plain.items())

    assert farthest(cached) < 0.25 * farthest(full)
    assert farthest(cached) < 1e-2
    assert farthest(full) > 2e-2


@pytest.mark.parametrize("cached", [False, True])
def test_batches_without_a_row_of_a_features_source(cached: bool, tmp_path: Path) -> None:
    """Rows come one by one, so most batches lack one source or the other; pairs are compared with earlier ones."""
    objective = Weighted((InfoNCE(memory=4), 1.0, "pairs"), (NextToken(matched=False), 0.5, "instructions"))
    rows = [{**row, "source": "pairs"} for row in pair_rows(2)]
    rows += [{**row, "source": "instructions"} for row in pair_rows(2)]
    trainer = make_trainer(
        tmp_path, objective, rows, per_device_train_batch_size=1, max_steps=4, cache_gradients=cached
    )
    trainer.train()
    assert all(math.isfinite(line["loss"]) for line in trainer.state.log_history if "loss" in line)
    told = [set(line) & {"loss/info_nce", "loss/next_token"} for line in trainer.state.log_history if "loss" in line]
    assert sorted(map(len, told)) == [1] * 4


@pytest.mark.parametrize("cached", [False, True])
def test_a_term_that_reads_nothing_that_trains_is_refused(cached: bool, tmp_path: Path) -> None:
    """Where only the projector trains, sequences without an image move nothing."""
    model, processor = tiny("llava")
    model.requires_grad_(False)
    family_of(model).module(model, family_of(model).projector).requires_grad_(True)
    given = {"model": model, "processing_class": processor, "adapter": None, "cache_gradients": cached}
    trainer = make_trainer(tmp_path, NextToken(matched=False), pair_rows(2, images=False), **given)
    with pytest.raises(ValueError, match=r"'next_token' reaches no parameter"):
        trainer.train()
