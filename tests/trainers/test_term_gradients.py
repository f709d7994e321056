"""Gradient norms of single terms: against gradients of runs with that term alone, and without a trace in the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_align.objectives import NextToken, RegionContrast, Weighted
from mllm_align.trainers import AlignConfig
from runs import Headed, gradients, make_trainer, trained
from two_pictures import rows_of_two_pictures

ADAPTER = {"lora_scope": ["language", "vision"], "lora_dropout": 0.2, "train_projector": True}


def three(contrast: float = 2.0, tokens: float = 0.5, toy: float = 0.01) -> Weighted:
    return Weighted((RegionContrast(negatives="pair"), contrast), (NextToken(matched=False), tokens), (Headed(), toy))


def run(folder: Path, objective: Any, **changes: Any) -> Any:
    settings: dict[str, Any] = {"max_steps": 1, "train_sampling_strategy": "sequential"}
    return make_trainer(folder, objective, rows_of_two_pictures(), adapter=dict(ADAPTER), **(settings | changes))


def part_of(name: str) -> str:
    marks = {"vision_tower": "vision", "multi_modal_projector": "projector", "language_model": "language"}
    return next((part for mark, part in marks.items() if mark in name), "head")


def norms_of(found: dict[str, torch.Tensor], weight: float) -> dict[str, float]:
    squares: dict[str, float] = {}
    for name, gradient in found.items():
        squares[part_of(name)] = squares.get(part_of(name), 0.0) + gradient.double().square().sum().item() / weight**2
    return {part: square**0.5 for part, square in squares.items()}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_norms_are_those_of_runs_with_one_term(tmp_path: Path, accumulation: int) -> None:
    """Rows of one batch in one or two parts, negatives within a row; weights are taken out again."""
    size = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    trainer = run(tmp_path / "all", three(), log_term_gradients_every=1, disable_dropout=True, **size)
    trainer.train()
    log = trainer.state.log_history[0]
    weights = {"region_contrast": 2.0, "next_token": 0.5, "headed": 0.01}
    for place, (term, weight) in enumerate(weights.items()):
        alone = [weight if number == place else 0.0 for number in range(3)]
        found = gradients(run(tmp_path / term, three(*alone), disable_dropout=True, per_device_train_batch_size=4))
        expected = norms_of(found, weight)
        assert expected.keys() == {"vision", "projector", "language", "head"}
        for part, norm in expected.items():
            assert log[f"grad_norm/{part}/{term}"] == pytest.approx(norm, rel=1e-4, abs=1e-7), part
    assert log["grad_norm/language/region_contrast"] == 0 < log["grad_norm/vision/region_contrast"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_is_bit_equal(tmp_path: Path, checkpointing: bool) -> None:
    """With dropout, so that the random state counts; of three steps the first and the third are measured."""
    ends = []
    for every in (None, 2):
        trainer = run(
            tmp_path / str(every),
            three(),
            log_term_gradients_every=every,
            max_steps=3,
            disable_dropout=False,
            gradient_accumulation_steps=2,
            per_device_train_batch_size=1,
            gradient_checkpointing=checkpointing,
        )
        first = gradients(trainer)
        ends.append((first, trained(trainer), dict(trainer.objective.named_parameters()), torch.get_rng_state()))
        measured = [entry for entry in trainer.state.log_history if "grad_norm/vision/next_token" in entry]
        assert [entry["step"] for entry in measured] == ([1, 3] if every else [])
    (*plain, state), (*other, state_after) = ends
    for left, right in zip(plain, other, strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(value, right[name]) for name, value in left.items())
    assert torch.equal(state, state_after)


def test_a_scaled_loss_has_the_same_norms(tmp_path: Path) -> None:
    found = []
    for scale in (1.0, 1024.0):
        trainer = run(tmp_path / str(scale), three(), log_term_gradients_every=1)
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        trainer.train()
        found.append({name: value for name, value in trainer.state.log_history[0].items() if "grad_norm/" in name})
    assert len(found[0]) == 12
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache_gradients": True}, "cache_gradients lets go of the graph"),
        ({"torch_compile": True}, "torch_compile makes layers"),
        ({"activation_checkpointing_kwargs": {"use_reentrant": True}}, "use_reentrant .* knows the gradient"),
        ({"log_term_gradients_every": 0}, "must be a number of steps of at least 1 or None, not 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlignConfig(str(tmp_path), use_cpu=True, **({"log_term_gradients_every": 5} | settings))
