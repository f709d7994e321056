from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from peft import PeftModel

from mllm_align.models import ModelArguments, load_model, load_processor, model_path
from tiny import save_tiny, tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llava", tmp_path_factory.mktemp("llava"))


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_folder(tmp_path: Path, family: str) -> None:
    save_tiny(family, tmp_path)
    model, processor = load_model(tmp_path)
    expected, _ = tiny(family)
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter, rtol=0, atol=0)
    assert not model.training
    assert processor.tokenizer.padding_side == "left"
    assert processor.tokenizer.pad_token is not None


def test_half_precision_weights_become_full_on_cpu(tmp_path: Path) -> None:
    model, processor = tiny("llava")
    model.half().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert load_model(tmp_path)[0].dtype is torch.float32
    assert load_model(tmp_path, dtype="bfloat16")[0].dtype is torch.bfloat16


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_nf4_quantises_the_language_model_alone(tmp_path: Path, family: str) -> None:
    save_tiny(family, tmp_path)
    model, _ = load_model(tmp_path, load_in_4bit=True)
    quantised = {n: m for n, m in model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert quantised.keys() == {name for name in linear if name.startswith("model.language_model.")}
    for module in quantised.values():
        assert not module.support_avx512bf16_for_cpu
        assert module.compute_dtype is torch.float32
        assert module.weight.quant_type == "nf4"
        assert module.weight.quant_state.nested


def test_a_missing_pad_token_is_the_end_of_sequence(tmp_path: Path) -> None:
    model, processor = tiny("llava")
    model.save_pretrained(tmp_path)
    processor.tokenizer.pad_token = None
    processor.save_pretrained(tmp_path)
    tokenizer = load_processor(tmp_path).tokenizer
    assert tokenizer.pad_token == tokenizer.eos_token


def test_new_adapters(folder: Path) -> None:
    model, _ = load_model(folder, use_peft=True, lora_r=2, train_projector=True)
    assert isinstance(model, PeftModel)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    parts = ("language_model.", "multi_modal_projector.modules_to_save.")
    assert all(any(part in name for part in parts) for name in trained)
    assert all(any(part in name for name in trained) for part in parts)


def test_missing_bitsandbytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="load_in_4bit needs bitsandbytes"):
        load_model(folder, load_in_4bit=True)


def test_layers_too_narrow_for_4_bits(tmp_path: Path) -> None:
    model, processor = tiny("llava")
    text = model.config.text_config
    text.intermediate_size = 32
    type(model)._from_config(model.config).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"at least 64 input features.*mlp.down_proj has 32"):
        load_model(tmp_path, load_in_4bit=True)


def without(folder: Path, target: Path, *names: str) -> Path:
    for file in folder.iterdir():
        if file.name not in names:
            (target / file.name).write_bytes(file.read_bytes())
    return target


def test_models_that_cannot_be_loaded(tmp_path: Path, folder: Path) -> None:
    def refused(model: Any, message: str, **kwargs: Any) -> None:
        with pytest.raises(ValueError, match=message):
            load_model(model, **kwargs)

    refused("", "model_name_or_path is missing")
    refused(ModelArguments(), "model_name_or_path is missing")
    refused("nobody/no-such-model", r"from 'nobody/no-such-model' \(nor is there a folder 'nobody/no")
    for missing in ("./nope", str(tmp_path / "nope"), "runs/mine/nope"):
        refused(missing, f"there is no folder '{missing}': name one, or a Hub id")
    refused(tmp_path, "no config.json in .*wrong folder")
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(tmp_path, "it is an adapter: pass it as `adapter`")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    refused(tmp_path, "model type 'llama' is not a vision-language family")


def test_a_checkpoint_without_a_processor(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no processor could be loaded|has no image processor"):
        load_model(without(folder, tmp_path, "processor_config.json", "preprocessor_config.json"))


def test_the_model_that_comes_with_the_package_has_a_name() -> None:
    model, processor = load_model("demo-base", device="cpu")
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert type(load_processor("demo-base")) is type(processor)
    assert model_path("org/model") == "org/model"
    for missing in (None, ""):
        with pytest.raises(ValueError, match="model_name_or_path is missing"):
            model_path(missing)
