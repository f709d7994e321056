"""Finding a model's family, and saying clearly why a model or a processor will not do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from mllm_align.families import FAMILIES as ROWS
from mllm_align.families import check_model, family_of, unwrap
from tiny import FAMILIES, tiny

MODEL_TYPES = {
    "llava": "LLaVA-1.5",
    "llava_next": "LLaVA-NeXT",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "idefics3": "Idefics3",
    "smolvlm": "SmolVLM",
    "llava_onevision": "LLaVA-OneVision",
    "internvl": "InternVL",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL",
    "pixtral": "Pixtral",
    "mistral3": "Mistral3",
    "paligemma": "PaliGemma",
    "paligemma2": "PaliGemma",
    "gemma3": "Gemma3",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_and_its_processor_are_accepted(name: str) -> None:
    model, processor = tiny(name)
    assert check_model(model, processor).name == MODEL_TYPES[name]
    assert family_of(model.config).name == MODEL_TYPES[name]


def test_model_types_and_names_are_unique() -> None:
    types = [(model_type, family.vision_type) for family in ROWS for model_type in family.model_types]
    assert len(types) == len(set(types))
    assert len({family.name for family in ROWS}) == len(ROWS)


def test_wrappers_are_seen_through() -> None:
    model, _ = tiny("llava")
    targets = family_of(model).lora_targets(model, ["projector"])
    wrapped = nn.DataParallel(get_peft_model(model, LoraConfig(target_modules=targets)))
    assert unwrap(wrapped) is model
    assert family_of(wrapped).name == "LLaVA-1.5"


def test_a_text_model_is_refused() -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    _, processor = tiny("llava")
    with pytest.raises(ValueError, match=r"'llama' is not a vision-language family .*llava.*qwen2_vl"):
        check_model(LlamaForCausalLM(config), processor)
    with pytest.raises(ValueError, match="None is not a vision-language family"):
        family_of(torch.nn.Linear(1, 1))


def test_a_model_without_image_tokens_is_refused() -> None:
    _, processor = tiny("idefics3")
    model = SimpleNamespace(config=SimpleNamespace(model_type="idefics3"))
    with pytest.raises(ValueError, match="no image tokens to look at"):
        check_model(model, processor)


def test_a_tokenizer_in_place_of_a_processor_is_refused() -> None:
    model, processor = tiny("llava_next")
    with pytest.raises(ValueError, match="cannot read images"):
        check_model(model, processor.tokenizer)


def test_a_processor_of_another_checkpoint_is_refused() -> None:
    model, _ = tiny("llava")
    _, processor = tiny("qwen2_vl")
    with pytest.raises(ValueError, match="load both from the same checkpoint"):
        check_model(model, processor)
