"""Features of a slow copy of what trains: its weights, that nothing else is touched, resuming, and every engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_align.objectives import InfoNCE, NextToken, Weighted
from mllm_align.trainers.averaged import AveragedWeights, averaged_weights
from runs import gradients, make_trainer, pair_rows, trained


def slow(**options: Any) -> Weighted:
    return Weighted(
        (InfoNCE(**({"momentum": 0.9, "soft_targets": 0.4} | options)), 1.0), (NextToken(matched=False), 1.0)
    )


def test_the_average_is_that_of_a_loop_in_float64() -> None:
    model = torch.nn.Linear(3, 2, bias=False).to(torch.bfloat16)
    average = AveragedWeights(model, 0.995)
    expected = model.weight.detach().double()
    start = model.weight.detach().float().clone()
    with torch.no_grad():
        model.weight.mul_(1.1)
    for _ in range(1000):
        average.on_optimizer_step(None, None, None)
        expected = 0.995 * expected + 0.005 * model.weight.detach().double()
    torch.testing.assert_close(average.values["weight"].double(), expected, rtol=1e-4, atol=1e-6)
    assert torch.linalg.norm(average.values["weight"] - start) > 0.9 * torch.linalg.norm(model.weight.float() - start)
    own = model.weight
    with average.in_place():
        assert model.weight is own
        torch.testing.assert_close(own.float(), expected.float(), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(own.float(), 1.1 * start, rtol=1e-2, atol=1e-3)


def test_two_speeds_are_refused() -> None:
    both = Weighted((InfoNCE(momentum=0.9), 1.0), (InfoNCE(image="contrast_image", momentum=0.5), 1.0))
    with pytest.raises(ValueError, match=r"momentum 0\.5 and 0\.9"):
        averaged_weights(torch.nn.Linear(1, 1), both.needs.features, False)


@pytest.mark.parametrize("cached", [False, True])
def test_the_slow_copy_follows_and_is_what_is_measured(tmp_path: Path, cached: bool) -> None:
    trainer = make_trainer(
        tmp_path, slow(memory=8), pair_rows(6), adapter={"train_projector": True}, max_steps=3, cache_gradients=cached
    )
    seen: list[torch.Tensor] = []
    forward = trainer.objective.parts[0].objective.forward

    def watched(policy: Any, reference: Any) -> Any:
        if policy.features["image:image"].values.abs().sum() > 0:
            seen.append((policy.features["image:image"].values - policy.features["slow image:image"].values).detach())
            assert not policy.features["slow image:image"].values.requires_grad
            assert policy.host_feature_ids["slow image:image"] == policy.host_feature_ids["image:image"]
        return forward(policy, reference)

    trainer.objective.parts[0].objective.forward = watched
    before = {name: value.clone() for name, value in trainer.averaged.values.items()}
    trainer.train()
    assert seen[0].abs().max() < 1e-5  # it starts where the policy is
    assert seen[-1].abs().max() > 1e-5
    after = trained(trainer)
    moved = [name for name in before if not torch.equal(before[name], trainer.averaged.values[name])]
    assert len(moved) > len(before) / 2
    for name in moved:
        way = torch.linalg.norm(trainer.averaged.values[name] - before[name])
        assert way < torch.linalg.norm(after[name] - before[name])
    assert trainer.objective.parts[0].objective.images_before.added == 6


def test_gradients_by_caching_are_those_of_one_graph(tmp_path: Path) -> None:
    once: dict[str, Any] = {"adapter": {"train_projector": True}, "max_steps": 1, "per_device_train_batch_size": 4}
    plain, cached = (
        gradients(make_trainer(tmp_path / str(way), slow(), pair_rows(4), cache_gradients=way, **once))
        for way in (False, True)
    )
    assert plain.keys() == cached.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(cached[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_a_resumed_run_has_its_average(tmp_path: Path) -> None:
    def run(folder: str, **changes: Any) -> Any:
        settings = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
        return make_trainer(tmp_path / folder, slow(memory=4), pair_rows(6), **(settings | changes))

    whole, first = run("whole", max_steps=4), run("parts", max_steps=2)
    whole.train()
    first.train()
    resumed = run("parts", max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    for name, value in whole.averaged.values.items():
        assert torch.equal(resumed.averaged.values[name], value), name
    resumed.save_model(str(tmp_path / "out"))
    assert not (tmp_path / "out" / "averaged.safetensors").exists()
    other = run("parts", max_steps=5, overwrite_output_dir=True)
    (tmp_path / "parts" / "checkpoint-4" / "averaged.safetensors").unlink()
    with pytest.raises(ValueError, match="has no averaged weights of this run"):
        other.train(resume_from_checkpoint=True)
