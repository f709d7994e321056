from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer

from mllm_align.objectives.next_token import NextToken
from mllm_align.trainers.master_weights import MasterWeights, keeps_remainders, uses_master_weights
from mllm_align.trainers.memory import Switches, run_of
from runs import config, make_trainer, pair_rows, trained
from tiny import tiny

RATE = 2e-5


def weights(dtype: torch.dtype) -> list[nn.Parameter]:
    """One that 8-bit optimisers keep in 8 bits and two that they do not; the last is float32 everywhere."""
    torch.manual_seed(0)
    first, second, third = torch.randn(80, 64).bfloat16(), torch.randn(64).bfloat16(), torch.randn(7)
    return [nn.Parameter(first.to(dtype)), nn.Parameter(second.to(dtype)), nn.Parameter(third)]


def gradients(step: int) -> list[torch.Tensor]:
    torch.manual_seed(100 + step)
    return [torch.randn(80, 64).bfloat16(), torch.randn(64).bfloat16(), torch.randn(7)]


def step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], number: int) -> None:
    for parameter, gradient in zip(parameters, gradients(number), strict=True):
        parameter.grad = gradient.to(parameter.dtype)
    optimizer.step()


def make(optim: str, folder: Path, parameters: list[nn.Parameter], optim_args: str | None = None) -> Any:
    args = config(folder, optim=optim, learning_rate=RATE, optim_args=optim_args)
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    groups = [{"params": parameters[:1], "weight_decay": 0.1}, {"params": parameters[1:], "weight_decay": 0.0}]
    return kind(groups, **settings)


def masters_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


def adamw_loop(start: torch.Tensor, place: int, steps: int, decay: float) -> torch.Tensor:
    """AdamW as its paper has it, in float64."""
    weight, first, second = start.double(), torch.zeros(start.shape).double(), torch.zeros(start.shape).double()
    for number in range(1, steps + 1):
        gradient = gradients(number)[place].double()
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        weight = weight - RATE * decay * weight
        weight = weight - RATE * (first / (1 - 0.9**number)) / ((second / (1 - 0.999**number)).sqrt() + 1e-8)
    return weight


def test_masters_follow_adamw_in_float64(tmp_path: Path) -> None:
    parameters = weights(torch.bfloat16)
    start = [p.detach().clone() for p in parameters]
    optimizer = make("adamw_torch", tmp_path, parameters)
    MasterWeights(optimizer)
    for number in range(1, 31):
        step(optimizer, parameters, number)
    for place, (parameter, master) in enumerate(zip(parameters, masters_of(optimizer), strict=True)):
        wanted = adamw_loop(start[place], place, 30, 0.1 if place == 0 else 0.0)
        assert master.dtype == torch.float32
        # Two float32 roundings a step; the weights themselves round at 4e-3.
        torch.testing.assert_close(master.double(), wanted, rtol=60 * 2**-24, atol=1e-7)
        assert torch.equal(parameter, master.to(parameter.dtype))
        assert parameter.grad is not None  # for callbacks that look at gradients after a step
    assert all(p.grad is None for group in optimizer.param_groups for p in group["params"][:1])


@pytest.mark.parametrize(
    ("optim", "optim_args"),
    [
        ("adamw_torch", None),
        ("adamw_torch_fused", None),
        ("adafactor", None),
        ("adagrad", None),
        ("rmsprop", None),
        ("sgd", "momentum=0.9"),
        ("adamw_8bit", None),
        ("paged_adamw_32bit", None),
        ("lion_8bit", None),
        ("lion_32bit", None),
        ("ademamix_8bit", None),
        ("rmsprop_bnb", None),
    ],
)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_every_optimiser_steps_as_on_float32_weights_also_when_resumed(
    optim: str, optim_args: str | None, tmp_path: Path
) -> None:
    whole, halved = weights(torch.float32), weights(torch.bfloat16)
    plain, optimizer = make(optim, tmp_path, whole, optim_args), make(optim, tmp_path, halved, optim_args)
    MasterWeights(optimizer)
    for number in range(6):
        if number == 3:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            halved = [nn.Parameter(p.detach().clone()) for p in halved]
            optimizer = make(optim, tmp_path, halved, optim_args)
            MasterWeights(optimizer)
            optimizer.load_state_dict(torch.load(file, weights_only=True))
        step(plain, whole, number)
        step(optimizer, halved, number)
    for parameter, master, wanted in zip(halved, masters_of(optimizer), whole, strict=True):
        assert torch.equal(master, wanted)
        assert torch.equal(parameter, wanted.to(parameter.dtype))


def test_embeddings_keep_their_32_bit_states(tmp_path: Path) -> None:
    from bitsandbytes.optim.optimizer import GlobalOptimManager

    embedding = nn.Embedding(80, 64, dtype=torch.bfloat16)
    GlobalOptimManager.get_instance().register_module_override(embedding, "weight", {"optim_bits": 32})
    parameters = [embedding.weight, *weights(torch.bfloat16)[:1]]
    optimizer = make("adamw_8bit", tmp_path, parameters)
    MasterWeights(optimizer)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = [optimizer.state[p]["state1"].dtype for group in optimizer.param_groups for p in group["params"]]
    assert states == [torch.float32, torch.uint8]


def test_weights_that_are_changed_between_steps_are_stepped_from_there(tmp_path: Path) -> None:
    parameters = weights(torch.bfloat16)
    optimizer = make("sgd", tmp_path, parameters)
    MasterWeights(optimizer)
    step(optimizer, parameters, 0)
    before = masters_of(optimizer)[1]
    with torch.no_grad():
        parameters[0].fill_(8.0)
        parameters[1].clamp_(min=0)
    step(optimizer, parameters, 1)
    decayed = torch.full((80, 64), 8.0) * (1 - RATE * 0.1)
    torch.testing.assert_close(masters_of(optimizer)[0], decayed - RATE * gradients(1)[0].float(), rtol=0, atol=2e-6)
    # What was not clamped kept what its master had beyond bfloat16.
    wanted = before.clamp(min=0) - RATE * gradients(1)[1].float()
    torch.testing.assert_close(masters_of(optimizer)[1], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, True),
        ({"float32_master_weights": False}, False),
        ({"optim": "lomo"}, False),
        ({"optim": "galore_adamw_layerwise"}, False),
        ({"optim": "schedule_free_adamw"}, False),
        ({"optim": "adamw_anyprecision", "optim_args": "use_kahan_summation=True"}, False),
        ({"optim": "adamw_anyprecision", "optim_args": "use_kahan_summation=False"}, True),
        ({"optim": "adamw_torch_8bit", "optim_args": "bf16_stochastic_round=1"}, False),
    ],
    ids=str,
)
def test_runs_with_masters(changes: dict[str, Any], wanted: bool, tmp_path: Path) -> None:
    args = config(tmp_path, **changes)
    assert uses_master_weights(args) == wanted
    assert keeps_remainders(args) == ("optim_args" in changes and not wanted)


def run(folder: Path, family: str, adapter: Any, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Any:
    torch.manual_seed(0)
    model, processor = tiny(family)
    settings: dict[str, Any] = {
        "bf16": True,
        "learning_rate": RATE,
        "gradient_accumulation_steps": 2,
        "vision_learning_rate": 3e-5,
        "max_grad_norm": 0.5,
        "max_steps": 2,
        "per_device_train_batch_size": 1,
    }
    return make_trainer(
        folder,
        NextToken(),
        pair_rows(4),
        model=model.to(dtype),
        processing_class=processor,
        adapter=adapter,
        **(settings | changes),
    )


@pytest.mark.parametrize(
    ("family", "adapter", "changes"),
    [("llava", {"train_projector": True, "train_vision": True}, {"cache_gradients": True}), ("qwen3_vl", None, {})],
    ids=str,
)
def test_a_resumed_run_is_bit_identical(family: str, adapter: Any, changes: dict[str, Any], tmp_path: Path) -> None:
    """Copies of parts and a whole model, with a rate of its own for the tower, clipped and accumulated."""
    whole = run(tmp_path, family, adapter, save_strategy="steps", save_steps=1, **changes)
    before = masters_of(whole.create_optimizer())
    whole.train()
    resumed = run(tmp_path, family, adapter, **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    found, wanted = trained(resumed), trained(whole)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    masters = [masters_of(each.optimizer) for each in (resumed, whole)]
    assert all(torch.equal(one, other) for one, other in zip(*masters, strict=True))
    assert {m.dtype for m in masters[0]} == {torch.float32}
    moved = sum(int((one != other).sum()) for one, other in zip(before, masters[1], strict=True))
    assert moved > 0.9 * sum(one.numel() for one in before)
    assert torch.bfloat16 in {value.dtype for value in wanted.values()}


def test_float32_weights_train_as_without_the_setting(tmp_path: Path) -> None:
    runs = []
    for kept in (True, False):
        trainer = run(tmp_path / str(kept), "llava", None, torch.float32, max_steps=2, float32_master_weights=kept)
        trainer.train()
        runs.append(trained(trainer))
        stepped = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
        assert stepped == {id(p) for p in trainer.model.parameters() if p.requires_grad}
        assert "master_weights" not in trainer.optimizer.state_dict()
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_masters_in_the_memory(optim: str, tmp_path: Path) -> None:
    parts = {}
    for kept in (True, False):
        trainer = run(tmp_path / str(kept), "llava", None, optim=optim, float32_master_weights=kept)
        rows = (trainer.data_collator, trainer.train_dataset)
        found = run_of(trainer.args, trainer.model, trainer.objective, trainer.reference, *rows)
        parts[kept] = found.estimate(Switches.of(trainer.args)).lasting
    count = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    moments = {"adamw_torch": 2, "sgd": 0}[optim]
    assert [parts[True][purpose] for purpose in ("master weights", "optimiser")] == [4 * count, 4 * moments * count]
    assert [parts[False][purpose] for purpose in ("master weights", "optimiser")] == [0, 2 * moments * count]
    assert parts[True]["gradients"] == parts[False]["gradients"] == 2 * count
