from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from trl import ModelConfig

from mllm_align.models import ModelArguments


def test_flags_are_those_of_trl() -> None:
    ours = {field.name for field in fields(ModelArguments)}
    theirs = {field.name for field in fields(ModelConfig)}
    own = {"lora_scope", "mixer", "soft_prompts", "start_from", "train_projector", "train_vision", "trust_remote_code"}
    assert ours - theirs <= own


def test_auto_dtype_is_full_precision_on_cpu() -> None:
    assert ModelArguments().torch_dtype(torch.device("cpu")) is torch.float32
    assert ModelArguments(dtype="bfloat16").torch_dtype(torch.device("cpu")) is torch.bfloat16


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dtype": "float8"}, "dtype 'float8' is none of auto"),
        ({"bnb_4bit_quant_type": "int4"}, "bnb_4bit_quant_type 'int4' is none of nf4, fp4"),
        ({"train_projector": True, "lora_scope": ["projector"]}, "take 'projector' out of lora_scope"),
        ({"train_vision": True, "lora_scope": ["vision"]}, "take 'vision' out of lora_scope"),
    ],
)
def test_values_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelArguments(**values)
