from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mllm_align.trainers import AlignConfig


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
        ({"torch_compile": True}, "torch_compile must be off"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlignConfig(str(tmp_path), use_cpu=True, **settings)


def test_batches_are_never_dispatched_whatever_else_is_set(tmp_path: Path) -> None:
    config = AlignConfig(str(tmp_path), use_cpu=True, accelerator_config={"even_batches": False})
    assert config.accelerator_config.dispatch_batches is False
