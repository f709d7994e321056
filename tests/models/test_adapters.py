from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from mllm_align.families import family_of
from mllm_align.models import ModelArguments, base_probe, load_model, lora_config, save_base_identity
from mllm_align.models.adapters import adapter_parameters, disable_dropout, is_quantized
from runs import lora
from tiny import save_tiny, tiny

IDS = torch.arange(40, 60)[None]


def save_adapter(base: Path, folder: Path, **changes: Any) -> tuple[Path, torch.Tensor]:
    """An adapter whose update is not zero, and the logits with it."""
    model, _ = load_model(base)
    adapted = get_peft_model(model, lora(model, **changes)).eval()
    adapted.save_pretrained(folder)
    with torch.no_grad():
        return folder, adapted(input_ids=IDS).logits


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llava", tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("scope", ["language", "projector", "vision"])
def test_scopes_name_exactly_their_layers(scope: str) -> None:
    model, _ = tiny("llava")
    targets = lora_config(model, ModelArguments(lora_scope=[scope])).target_modules
    assert targets
    assert {family_of(model).scope_of(name) for name in targets} == {scope}
    assert all(isinstance(model.get_submodule(name), torch.nn.Linear) for name in targets)


def test_scopes_that_are_none() -> None:
    model, _ = tiny("llava")
    with pytest.raises(ValueError, match="unknown LoRA scope 'eyes'"):
        lora_config(model, ModelArguments(lora_scope=["eyes"]))
    with pytest.raises(ValueError, match="lora_scope is empty"):
        lora_config(model, ModelArguments(lora_scope=[]))


@pytest.mark.parametrize("trainable", [False, True])
def test_a_saved_adapter_comes_back(tmp_path: Path, base: Path, trainable: bool) -> None:
    folder, logits = save_adapter(base, tmp_path, train_projector=True)
    model, _ = load_model(base, folder, trainable=trainable)
    assert any(p.requires_grad for p in model.parameters()) == trainable
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, logits)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, base: Path) -> None:
    """By its name where that is all there is, by its weights where they were recorded."""
    other = save_tiny("llava", tmp_path / "other", seed=1)
    folder, _ = save_adapter(base, tmp_path / "adapter")
    with pytest.raises(ValueError, match="says it was trained on"):
        load_model(other, folder)
    save_base_identity(base_probe(load_model(base)[0]), str(base), folder)
    with pytest.raises(ValueError, match=r"trained on another base.*has other values"):
        load_model(other, folder)
    (tmp_path / "moved").mkdir()
    moved = save_tiny("llava", tmp_path / "moved")
    load_model(moved, folder)


def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path, base: Path) -> None:
    folder, _ = save_adapter(base, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    other = tmp_path / "other"
    model, processor = tiny("llava")
    model.config.text_config.intermediate_size = 192
    type(model)._from_config(model.config).save_pretrained(other)
    processor.save_pretrained(other)
    config["base_model_name_or_path"] = str(other)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not fit this model"):
        load_model(other, folder)


def test_no_adapter_there(tmp_path: Path, base: Path) -> None:
    with pytest.raises(ValueError, match="no adapter in"):
        load_model(base, tmp_path)


def test_adapter_parameters_are_all_that_trains() -> None:
    model, _ = tiny("llava")
    assert adapter_parameters(model) == set()
    adapted = get_peft_model(model, lora(model, train_projector=True))
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained == adapter_parameters(adapted)


def test_quantised_or_not() -> None:
    assert not is_quantized(tiny("llava")[0])
    model, _ = tiny("llava", quantized=True)
    assert is_quantized(model)
    assert is_quantized(get_peft_model(model, lora(model)))


def test_dropout_off_makes_training_forwards_equal() -> None:
    model, _ = tiny("llava")
    adapted = get_peft_model(model, lora(model, lora_dropout=0.5)).train()
    assert not torch.equal(adapted(input_ids=IDS).logits, adapted(input_ids=IDS).logits)
    disable_dropout(adapted)
    assert torch.equal(adapted(input_ids=IDS).logits, adapted(input_ids=IDS).logits)
