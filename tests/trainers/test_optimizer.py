from __future__ import annotations

from pathlib import Path

import pytest

from mllm_align.families import family_of
from mllm_align.objectives.next_token import NextToken
from mllm_align.trainers.optimizer import BASE, MIXER, PROJECTOR, part_of
from runs import Headed, make_trainer, pair_rows
from tiny import tiny

PREFIX = "base_model.model.model."


def test_parts_by_name() -> None:
    llava = family_of(tiny("llava")[0])
    assert part_of(PREFIX + "multi_modal_projector.modules_to_save.default.linear_1.weight", llava) == PROJECTOR
    assert part_of("model.multi_modal_projector.linear_1.bias", llava) == PROJECTOR
    assert part_of(PREFIX + "language_model.layers.0.self_attn.q_proj.lora_A.default.weight", llava) == BASE
    assert part_of(PREFIX + "vision_tower.encoder.layers.0.self_attn.q_proj.lora_A.default.weight", llava) == BASE
    assert part_of("model.mixer.gate.weight", llava) == MIXER
    qwen = family_of(tiny("qwen2_vl")[0])
    assert part_of(PREFIX + "visual.merger.mlp.0.weight", qwen) == PROJECTOR
    assert part_of(PREFIX + "visual.blocks.0.attn.qkv.weight", qwen) == BASE


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
