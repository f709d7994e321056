from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES

from mllm_align.families import family_of
from mllm_align.objectives.dpo import DPO
from mllm_align.objectives.info_nce import InfoNCE
from mllm_align.objectives.next_token import NextToken
from mllm_align.objectives.weighted import Weighted
from mllm_align.signals import AdaptersOff, FrozenCopy, NamedAdapter
from mllm_align.trainers.config import AlignConfig
from mllm_align.trainers.setup import (
    NeedsOfSources,
    apply_peft,
    check_lone_rows,
    check_sources,
    resolve_model,
    resolve_reference,
    warn_of_unshared_prompts,
)
from runs import lora, make_trainer, pair_rows
from tiny import save_tiny, tiny

MIXED = Weighted((DPO(), 1.0, "pairs"), (NextToken(), 1.0, ("web", "chat")))


def test_sources_and_parts_must_know_each_other() -> None:
    check_sources(MIXED, ["pairs", "web", "chat"])
    check_sources(DPO(), ["anything"])
    with pytest.raises(ValueError, match=r"no part of the objective takes rows of source 'pear'.*'pairs', 'web'"):
        check_sources(MIXED, ["pairs", "web", "chat", "pear"])
    with pytest.raises(ValueError, match=r"part for source 'chat', the data has only 'pairs', 'web'"):
        check_sources(MIXED, ["pairs", "web"])
    assert NeedsOfSources(MIXED)("pairs") == DPO().needs


def test_flex_attention_is_refused_on_a_cpu_before_anything_is_trained(tmp_path: Path) -> None:
    model, processor = tiny("llava")
    model.config.get_text_config()._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match=r"flex_attention cannot train on a CPU.*attn_implementation='sdpa'"):
        make_trainer(tmp_path, DPO(), pair_rows(2), model=model, processing_class=processor)
    assert resolve_model(model, processor, None, torch.device("cuda"))[0] is model


def test_without_targets_the_adapter_goes_on_the_language_model() -> None:
    given = LoraConfig(r=2)
    model, processor = tiny("llava")
    model = apply_peft(model, given, processor)
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    plain, _ = tiny("llava")
    assert adapted == {f"base_model.model.{name}" for name in family_of(plain).lora_targets(plain, ["language"])}
    assert given.target_modules is None


@pytest.mark.parametrize(("targets", "warned"), [(["q_proj", "v_proj"], True), (None, False)])
def test_short_names_that_hit_the_tower_are_told(
    caplog: pytest.LogCaptureFixture, targets: list[str] | None, warned: bool
) -> None:
    model, processor = tiny("llava")
    with caplog.at_level(logging.WARNING, logger="mllm_align.trainers.setup"):
        apply_peft(model, LoraConfig(r=2, target_modules=targets), processor)
    assert ("also match the vision tower" in caplog.text) == warned


def test_full_names_in_the_tower_are_meant(caplog: pytest.LogCaptureFixture) -> None:
    model, processor = tiny("llava")
    with caplog.at_level(logging.WARNING, logger="mllm_align.trainers.setup"):
        apply_peft(model, lora(model, lora_scope=["language", "vision"]), processor)
    assert "also match the vision tower" not in caplog.text


@pytest.mark.parametrize("targets", [DUMMY_TARGET_MODULES, ["k_proj"]])
def test_a_copy_of_the_tower_is_no_hit_of_short_names(caplog: pytest.LogCaptureFixture, targets: Any) -> None:
    model, processor = tiny("llava")
    config = lora(model, lora_scope=[], train_vision=True, train_projector=True)
    assert config.target_modules == DUMMY_TARGET_MODULES
    config.target_modules = targets
    with caplog.at_level(logging.WARNING, logger="mllm_align.trainers.setup"):
        wrapped = apply_peft(model, config, processor)
    assert any("vision_tower" in name for name, p in wrapped.named_parameters() if p.requires_grad)
    assert "also match the vision tower" not in caplog.text


def test_adapters_where_they_cannot_be() -> None:
    model, processor = tiny("llava", quantized=True)
    with pytest.raises(ValueError, match="quantised model trains through adapters alone"):
        apply_peft(model, None, processor)
    adapted = apply_peft(model, LoraConfig(r=2), processor)
    assert apply_peft(adapted, None, processor) is adapted
    with pytest.raises(ValueError, match="has adapters already"):
        apply_peft(adapted, LoraConfig(r=2), processor)


def test_references() -> None:
    model, _ = tiny("llava")
    assert resolve_reference(model, NextToken(), None) is None
    frozen = resolve_reference(model, DPO(), None)
    assert isinstance(frozen, FrozenCopy)
    assert frozen.model is not model
    assert not frozen.model.training
    assert not any(p.requires_grad for p in frozen.model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    other, _ = tiny("llava", seed=1)
    assert resolve_reference(model, DPO(), other).model is other
    copied = FrozenCopy(tiny("llava", seed=2)[0].train())
    assert resolve_reference(model, DPO(), copied) is copied
    assert not copied.model.training
    assert not any(p.requires_grad for p in copied.model.parameters())
    settings = lora(model)
    adapted = get_peft_model(model, settings)
    assert resolve_reference(adapted, DPO(), None) == AdaptersOff()
    adapted.add_adapter("old", settings)
    adapted.set_adapter("default")
    named = NamedAdapter("old")
    assert resolve_reference(adapted, DPO(), named) is named


def test_a_reference_that_would_move() -> None:
    model, _ = tiny("llava")
    settings = lora(model, train_projector=True)
    adapted = get_peft_model(model, settings)
    assert resolve_reference(adapted, DPO(), None) == AdaptersOff()
    model.get_submodule("lm_head").requires_grad_(True)
    adapted.add_adapter("old", settings)
    adapted.set_adapter("default")
    model.get_submodule("lm_head").requires_grad_(True)
    for given in (None, AdaptersOff(), NamedAdapter("old")):
        with pytest.raises(ValueError, match=r"lm_head.weight trains but is part of the reference too"):
            resolve_reference(adapted, DPO(), given)
    model.get_submodule("lm_head").requires_grad_(False)
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_("lora_" in name or "modules_to_save.default" in name)
    with pytest.raises(ValueError, match=r"\.old\.weight trains but is part of the reference too"):
        resolve_reference(adapted, DPO(), NamedAdapter("old"))
    assert resolve_reference(adapted, DPO(), None) == AdaptersOff()


def test_a_reference_that_is_not_there() -> None:
    model, _ = tiny("llava")
    for given in (AdaptersOff(), NamedAdapter("old")):
        with pytest.raises(ValueError, match="needs a model with adapters"):
            resolve_reference(model, DPO(), given)
    adapted = get_peft_model(model, lora(model))
    with pytest.raises(ValueError, match="no adapter 'old' to use as reference; loaded: default"):
        resolve_reference(adapted, DPO(), NamedAdapter("old"))
    with pytest.raises(ValueError, match="adapter 'default' is the one that trains"):
        resolve_reference(adapted, DPO(), NamedAdapter("default"))
    assert resolve_reference(adapted, DPO(), NamedAdapter("default"), once=True) == NamedAdapter("default")
    with pytest.raises(ValueError, match="ref_model does not fit"):
        resolve_reference(adapted, DPO(), FrozenCopy(tiny("qwen2_vl")[0]))


def test_a_reference_of_another_kind() -> None:
    with pytest.raises(ValueError, match=r"ref_model does not fit: it is a Qwen2-VL"):
        resolve_reference(tiny("llava")[0], DPO(), tiny("qwen2_vl")[0])


def test_the_processor_is_found_beside_the_model(tmp_path: Path) -> None:
    folder = str(save_tiny("llava", tmp_path))
    cpu = torch.device("cpu")
    model, processor = resolve_model(folder, None, None, cpu)
    assert processor.tokenizer.padding_side == "left"
    same, again = resolve_model(model, None, None, cpu)
    assert same is model
    assert type(again) is type(processor)
    assert resolve_model(folder, processor, {"dtype": "float32"}, cpu)[1] is processor


def test_models_and_processors_that_do_not_fit() -> None:
    model, processor = tiny("llava")
    model.config._name_or_path = ""
    cpu = torch.device("cpu")
    cases: list[tuple[Any, Any, Any, str]] = [
        (model, None, None, "processing_class is missing"),
        (model, processor, {"dtype": "float32"}, "model_init_kwargs are for a model given by name"),
        (model, processor.tokenizer, None, "which cannot read images"),
        (torch.nn.Linear(1, 1), processor, None, "model type"),
    ]
    for given, processing_class, kwargs, message in cases:
        with pytest.raises(ValueError, match=message):
            resolve_model(given, processing_class, kwargs, cpu)


def test_back_ends_that_cannot_share_prompts_are_told(caplog: pytest.LogCaptureFixture) -> None:
    model, _ = tiny("llava")
    warn_of_unshared_prompts(model, "auto")
    assert not caplog.records
    model.config.text_config._attn_implementation = "flash_attention_2"
    warn_of_unshared_prompts(model, "off")
    assert not caplog.records
    warn_of_unshared_prompts(model, "auto")
    assert "flash_attention_2" in caplog.text
    assert "sdpa" in caplog.text


@pytest.mark.parametrize(
    ("objective", "rows", "alone"),
    [
        (InfoNCE(), 1, True),
        (InfoNCE(), 2, False),
        (InfoNCE(memory=8), 1, False),
        (InfoNCE(negatives=True, text_prompt="Name it:"), 1, False),
        (DPO(), 1, False),
    ],
)
def test_rows_that_are_compared_with_nothing_are_refused(objective: Any, rows: int, alone: bool) -> None:
    args = AlignConfig("x", per_device_train_batch_size=rows, use_cpu=True)
    with pytest.raises(ValueError, match="compared with nothing") if alone else nullcontext():
        check_lone_rows(args, objective)
