from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mllm_align.contract import Feature, Needs
from mllm_align.families import family_of
from mllm_align.objectives.dpo import DPO
from mllm_align.objectives.next_token import NextToken
from mllm_align.objectives.weighted import Weighted
from mllm_align.signals import AdaptersOff, FrozenCopy, NamedAdapter
from mllm_align.trainers.setup import (
    NeedsOfSources,
    apply_peft,
    check_measurable,
    check_sources,
    resolve_model,
    resolve_reference,
)
from runs import lora
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


def test_without_targets_the_adapter_goes_on_the_language_model() -> None:
    given = LoraConfig(r=2)
    model = apply_peft(tiny("llava")[0], given)
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    plain, _ = tiny("llava")
    assert adapted == {f"base_model.model.{name}" for name in family_of(plain).lora_targets(plain, ["language"])}
    assert given.target_modules is None


@pytest.mark.parametrize(("targets", "warned"), [(["q_proj", "v_proj"], True), (None, False)])
def test_short_names_that_hit_the_tower_are_told(
    caplog: pytest.LogCaptureFixture, targets: list[str] | None, warned: bool
) -> None:
    with caplog.at_level(logging.WARNING, logger="mllm_align.trainers.setup"):
        apply_peft(tiny("llava")[0], LoraConfig(r=2, target_modules=targets))
    assert ("also match the vision tower" in caplog.text) == warned


def test_adapters_where_they_cannot_be() -> None:
    model, _ = tiny("llava", quantized=True)
    with pytest.raises(ValueError, match="quantised model trains through adapters alone"):
        apply_peft(model, None)
    adapted = apply_peft(model, LoraConfig(r=2))
    assert apply_peft(adapted, None) is adapted
    with pytest.raises(ValueError, match="has adapters already"):
        apply_peft(adapted, LoraConfig(r=2))


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
    named = NamedAdapter("old")
    assert resolve_reference(model, DPO(), named) is named
    adapted = get_peft_model(model, lora(model))
    assert resolve_reference(adapted, DPO(), None) == AdaptersOff()


def test_a_reference_that_would_move() -> None:
    model, _ = tiny("llava")
    adapted = get_peft_model(model, lora(model, train_projector=True))
    assert resolve_reference(adapted, DPO(), None) == AdaptersOff()
    model.get_submodule("lm_head").requires_grad_(True)
    with pytest.raises(ValueError, match=r"lm_head.weight trains but is no part of an adapter"):
        resolve_reference(adapted, DPO(), None)


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


def test_an_objective_with_features_is_refused_by_name() -> None:
    class Wanting:
        needs = Needs(views=DPO.needs.views, features=(Feature("objects", "projector", "image"),))

    with pytest.raises(ValueError, match="feature 'objects'"):
        check_measurable(Wanting())
