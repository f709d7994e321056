from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_align.families import family_of
from mllm_align.objectives.next_token import NextToken
from mllm_align.trainers.optimizer import BASE, MIXER, PROJECTOR, VISION, part_of
from runs import Headed, make_trainer, pair_rows, trained
from tiny import tiny

PREFIX = "base_model.model.model."


def test_parts_by_name() -> None:
    llava = family_of(tiny("llava")[0])
    assert part_of(PREFIX + "multi_modal_projector.modules_to_save.default.linear_1.weight", llava) == PROJECTOR
    assert part_of("model.multi_modal_projector.linear_1.bias", llava) == PROJECTOR
    assert part_of(PREFIX + "language_model.layers.0.self_attn.q_proj.lora_A.default.weight", llava) == BASE
    assert part_of(PREFIX + "vision_tower.encoder.layers.0.self_attn.q_proj.lora_A.default.weight", llava) == VISION
    assert part_of("model.mixer.gate.weight", llava) == MIXER
    qwen = family_of(tiny("qwen2_vl")[0])
    assert part_of(PREFIX + "visual.merger.mlp.0.weight", qwen) == PROJECTOR
    assert part_of(PREFIX + "visual.blocks.0.attn.qkv.weight", qwen) == VISION
    assert part_of("model.vision_mixer.encoders.0.model.embeddings.weight", qwen) == BASE


@pytest.mark.parametrize("projector_rate", [None, 0.5])
def test_groups(tmp_path: Path, projector_rate: float | None) -> None:
    trainer = make_trainer(
        tmp_path,
        Headed(),
        pair_rows(2),
        adapter={"train_projector": True},
        weight_decay=0.1,
        learning_rate=0.01,
        projector_learning_rate=projector_rate,
        head_learning_rate=0.2,
    )
    optimizer = trainer.create_optimizer()
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decay_of = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert len(rate_of) == len(trained) + 2 == sum(len(group["params"]) for group in optimizer.param_groups)
    for name, parameter in trained.items():
        wanted = projector_rate if projector_rate and "projector" in name else 0.01
        assert rate_of[id(parameter)] == wanted, name
        assert decay_of[id(parameter)] == (0.0 if name.endswith("bias") else 0.1), name
    assert rate_of[id(trainer.objective.scale)] == 0.2
    assert decay_of[id(trainer.objective.scale)] == 0.0
    assert decay_of[id(trainer.objective.mix)] == 0.1
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_the_tower_has_a_rate_of_its_own(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        NextToken(),
        pair_rows(2),
        adapter={"train_projector": True, "train_vision": True},
        learning_rate=0.01,
        projector_learning_rate=0.5,
        vision_learning_rate=0.002,
        max_steps=1,
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    rate_of = {id(p): group["initial_lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[name]), name
            continue
        rate = 0.002 if "vision_tower" in name else 0.5 if "projector" in name else 0.01
        assert rate_of[id(parameter)] == rate, name
        # Adam's first step is the rate itself, wherever there is a gradient; a bias of keys has none.
        moved = (parameter - before[name]).abs().max().item()
        unread = "vision_tower" in name and any(
            part in name for part in ("layers.1.", "post_layernorm", "k_proj.bias")
        )
        assert unread or moved == pytest.approx(rate, rel=0.02), name
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert logged["learning_rate/vision"] == 0.002


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        ({}, {"projector", "vision"}),
        ({"train_projector": True}, {"vision"}),
        ({"train_vision": True}, {"projector"}),
        ({"lora_scope": ["projector", "vision"]}, set()),
    ],
)
def test_a_rate_of_what_does_not_train_is_told(
    adapter: dict[str, Any], told: set[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rates = {"projector_learning_rate": 0.5, "vision_learning_rate": 0.25}
    with caplog.at_level(logging.WARNING, logger="mllm_align.trainers.optimizer"):
        make_trainer(tmp_path, NextToken(), pair_rows(1), adapter=adapter, **rates)
        make_trainer(tmp_path, NextToken(), pair_rows(1), adapter={})
    assert {message.split("_learning_rate is of no effect")[0] for message in caplog.messages} == told


@pytest.mark.parametrize(
    ("family", "dtype", "adapter", "told"),
    [
        ("llava", torch.bfloat16, {"train_projector": True}, "projector (model.multi_modal_projector);"),
        ("qwen3_vl", torch.bfloat16, {"train_vision": True}, "vision (model.visual.patch_embed and "),
        ("llava", torch.bfloat16, None, "vision (all of it), projector (all of it), language (all of it), other ("),
        ("llava", torch.bfloat16, {}, None),
        ("llava", torch.float32, {"train_projector": True}, None),
    ],
    ids=str,
)
def test_steps_that_are_rounded_away_are_told(
    family: str, dtype: torch.dtype, adapter: Any, told: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without masters; and so it is: of steps of 2e-5 a float32 copy takes all, a bfloat16 one next to none."""
    model, processor = tiny(family)
    with caplog.at_level(logging.WARNING, logger="mllm_align.trainers.optimizer"):
        settings: dict[str, Any] = {"bf16": True, "learning_rate": 2e-5, "max_steps": 3}
        settings["float32_master_weights"] = False
        trainer = make_trainer(
            tmp_path,
            NextToken(),
            pair_rows(1),
            model=model.to(dtype),
            processing_class=processor,
            adapter=adapter,
            **settings,
        )
    assert len(caplog.messages) == (told is not None)
    if told is not None:
        before = "in bfloat16 a step of less than 1/512 of a weight is rounded away, and so trains: "
        assert caplog.messages[0].startswith(before + told)
        assert "; set float32_master_weights, load the model in float32 (dtype: float32)" in caplog.messages[0]
    if family != "llava" or adapter != {"train_projector": True}:
        return
    before = trained(trainer)
    trainer.train()
    copies = [(before[name], after) for name, after in trained(trainer).items() if "modules_to_save" in name]
    moved = sum(int((after != first).sum()) for first, after in copies) / sum(after.numel() for _, after in copies)
    assert moved < 0.1 if told is not None else moved > 0.9


@pytest.mark.parametrize(
    ("dtype", "changes", "told"),
    [
        (torch.bfloat16, {}, False),
        (torch.bfloat16, {"optim": "schedule_free_adamw"}, True),
        (torch.bfloat16, {"optimizers": (torch.optim.SGD([torch.zeros(1)]), None)}, True),
        (torch.float16, {}, True),
    ],
    ids=str,
)
def test_with_masters_only_what_has_none_is_told(
    dtype: torch.dtype, changes: Any, told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, processor = tiny("llava")
    given: dict[str, Any] = {"model": model.to(dtype), "processing_class": processor} | changes
    with caplog.at_level(logging.WARNING, logger="mllm_align.trainers.optimizer"):
        make_trainer(tmp_path, NextToken(), pair_rows(1), adapter={"train_projector": True}, **given)
    assert len(caplog.messages) == told
    assert "set float32_master_weights" not in caplog.text


def test_heads_take_the_common_rate_by_default(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, Headed(), pair_rows(2), learning_rate=0.03)
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {0.03}


def test_rates_are_logged_and_follow_the_schedule(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        NextToken(),
        pair_rows(4),
        adapter={"train_projector": True},
        projector_learning_rate=0.5,
        lr_scheduler_type="linear",
        max_steps=2,
    )
    trainer.train()
    logged = [entry["learning_rate/projector"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == [0.25, 0.0]
