from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mllm_align.trainers import AlignConfig
from mllm_align.trainers.setup import refuse_sharded


def test_defaults_on_a_machine_without_a_gpu(tmp_path: Path) -> None:
    config = AlignConfig(str(tmp_path), use_cpu=True)
    assert config.bf16 is False
    assert config.activation_checkpointing is False
    assert config.remove_unused_columns is False
    assert config.ddp_find_unused_parameters is False
    assert config.accelerator_config.dispatch_batches is False
    assert config.disable_dropout
    assert config.report_to == []
    assert config.data_seed == config.seed
    assert (config.dataloader_num_workers, config.dataloader_persistent_workers) == (0, False)
    assert config.dataloader_pin_memory is False


def test_workers_stay_between_epochs(tmp_path: Path) -> None:
    config = AlignConfig(str(tmp_path), use_cpu=True, dataloader_num_workers=2)
    assert (config.dataloader_persistent_workers, config.dataloader_prefetch_factor) == (True, 2)


def test_defaults_beside_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AlignConfig(str(tmp_path), use_cpu=True)
    config.dataloader_num_workers = config.dataloader_persistent_workers = config.dataloader_pin_memory = None
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    config._choose_workers(on_gpu=True)
    assert (config.dataloader_num_workers, config.dataloader_persistent_workers) == (3, True)
    assert config.dataloader_prefetch_factor == 2
    assert config.dataloader_pin_memory


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_both_names_of_checkpointing(tmp_path: Path, name: str) -> None:
    config = AlignConfig(str(tmp_path), use_cpu=True, **{name: True})
    assert config.activation_checkpointing is True
    assert config.activation_checkpointing_kwargs == {"use_reentrant": False}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on_overflow": "cut"}, "on_overflow 'cut' is none of error, drop, truncate"),
        ({"packing": "on"}, "packing 'on' is none of auto, off"),
        ({"logits_chunk_size": 0}, "logits_chunk_size must be at least 1"),
        ({"remove_unused_columns": True}, "remove_unused_columns must be off"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches must be off"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be at least 1"),
        ({"learning_rate": -1.0}, "learning_rate must not be negative"),
        ({"max_tokens_per_batch": 0}, "max_tokens_per_batch must be at least 1"),
        ({"max_tokens_per_batch": 9, "dataloader_drop_last": True}, "dataloader_drop_last must be off"),
        ({"report_to": "wandbee"}, "report_to 'wandbee' is not installed"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlignConfig(str(tmp_path), use_cpu=True, **settings)


def test_batches_are_never_dispatched_whatever_else_is_set(tmp_path: Path) -> None:
    config = AlignConfig(str(tmp_path), use_cpu=True, accelerator_config={"even_batches": False})
    assert config.accelerator_config.dispatch_batches is False


def test_cached_gradients_do_not_go_with_deepspeed(tmp_path: Path) -> None:
    args = AlignConfig(str(tmp_path), use_cpu=True, cache_gradients=True)
    args.deepspeed = {"zero_optimization": {"stage": 2}}
    with pytest.raises(ValueError, match=r"cache_gradients .* use DDP"):
        args._check_sharding()


def test_models_in_parts_are_refused_also_where_a_launcher_asks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # transformers sets it for good
    with pytest.raises(ValueError, match=r"fsdp holds the model in parts.*torchrun alone"):
        AlignConfig(str(tmp_path), use_cpu=True, fsdp=True)

    def launched(fsdp: bool = False, stage: int | None = None) -> SimpleNamespace:
        plugin = None if stage is None else SimpleNamespace(zero_stage=stage)
        state = SimpleNamespace(deepspeed_plugin=plugin)
        return SimpleNamespace(is_fsdp_enabled=fsdp, accelerator=SimpleNamespace(state=state))

    for allowed in (launched(), launched(stage=2)):
        refuse_sharded(allowed)
    with pytest.raises(ValueError, match=r"stage 3 of deepspeed holds the model in parts"):
        refuse_sharded(launched(stage=3))
    with pytest.raises(ValueError, match=r"fsdp holds the model in parts"):
        refuse_sharded(launched(fsdp=True))
