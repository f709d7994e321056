"""What is exported of a run with a mixer: with ours it loads as it was trained, without ours as the stock model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText

from mixed import OPTIONS
from mllm_align.cli import main
from mllm_align.families.image_only import load_processor as family_processor
from mllm_align.models import ModelArguments, load_model, merge_and_export
from mllm_align.objectives import NextToken
from mllm_align.vision.mixed_vision import mixed_of
from mllm_align.vision.mixer_files import SETTINGS_FILE, WEIGHTS_FILE, read_settings
from runs import make_trainer, pair_rows, picture
from tiny import save_tiny
from tiny_encoders import save_encoder

CASES = [("llava", "gated"), ("llava", "interleave"), ("llava_next", "concat"), ("qwen2_5_vl", "sva")]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder("dinov2", tmp_path_factory.mktemp("encoder"))


def run_of(arguments: ModelArguments, folder: Path) -> Any:
    model, processor = load_model(arguments, device="cpu")
    settings: dict[str, Any] = {"model": model, "processing_class": processor, "adapter": None}
    trainer = make_trainer(folder, NextToken(), pair_rows(2), learning_rate=5e-2, **settings)
    trainer.train()
    trainer.save_model()
    return trainer


def trained(family: str, kind: str, encoder: Any, folder: Path) -> tuple[Path, Path]:
    """A base, and a run on it of LoRA, mixer and, where it is read, projector."""
    base = save_tiny(family, folder / "base")
    arguments = ModelArguments(
        str(base),
        use_peft=True,
        lora_r=4,
        lora_dropout=0.0,
        train_projector=kind != "sva",
        mixer={"kind": kind, **OPTIONS[kind], "encoders": [encoder if isinstance(encoder, dict) else str(encoder)]},
    )
    run_of(arguments, folder / "run")
    return base, folder / "run"


@torch.no_grad()
def logits(model: Any, processor: Any, shown: Image.Image | None = None) -> Tensor:
    content = [{"type": "image"}, {"type": "text", "text": "What colour?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    images = [picture(0) if shown is None else shown]
    inputs = processor(text=text, images=images, return_tensors="pt", add_special_tokens=False)
    return model(**inputs.to(model.dtype)).logits


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_merged(family: str, kind: str, encoder: Path, tmp_path: Path) -> None:
    base, run = trained(family, kind, encoder, tmp_path)
    expected = logits(*load_model(base, run, device="cpu"))
    exported = merge_and_export(run, tmp_path / "merged", dtype="float32", device="cpu")
    assert not (exported / "adapter_config.json").exists()
    model, processor = load_model(exported, device="cpu")
    torch.testing.assert_close(logits(model, processor), expected, rtol=1e-4, atol=1e-4)
    # In plain transformers it is the stock architecture with its merged language model, and nothing of ours.
    plain, told = AutoModelForImageTextToText.from_pretrained(exported, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert mixed_of(plain.base_model) is None
    stock = family_processor(str(exported))
    unmixed = logits(plain.eval(), stock)
    assert unmixed.isfinite().all()
    assert unmixed.shape == logits(*load_model(base, device="cpu")).shape  # as many image tokens as the stock model
    assert unmixed.shape != expected.shape or not torch.allclose(unmixed, expected, atol=1e-2)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_the_adapter_alone(family: str, kind: str, encoder: Path, tmp_path: Path) -> None:
    base, run = trained(family, kind, encoder, tmp_path)
    exported = merge_and_export(run, tmp_path / "adapter", merge=False)
    names = {file.name for file in exported.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", SETTINGS_FILE, WEIGHTS_FILE} <= names
    assert torch.equal(logits(*load_model(base, exported, device="cpu")), logits(*load_model(base, run, device="cpu")))


def test_merged_in_sixteen_bits_and_again(encoder: Path, tmp_path: Path) -> None:
    _, run = trained("llava", "gated", encoder, tmp_path)
    exported = merge_and_export(run, tmp_path / "merged", device="cpu")
    model, _ = load_model(exported, device="cpu", dtype="bfloat16")
    assert {p.dtype for p in mixed_of(model.base_model).parameters()} == {torch.bfloat16}  # type: ignore[union-attr]
    assert read_settings(exported)["fingerprint"]["dtype"] == "torch.bfloat16"
    # What was exported is a base like any other: it is trained on, and exported again.
    again = ModelArguments(str(exported), dtype="float32", use_peft=True, lora_r=4, lora_dropout=0.0)
    trainer = run_of(again, tmp_path / "more")
    expected = logits(trainer.model.eval(), trainer.processing_class)
    assert torch.equal(logits(*load_model(exported, tmp_path / "more", device="cpu", dtype="float32")), expected)
    final = merge_and_export(tmp_path / "more", tmp_path / "final", dtype="float32", device="cpu")
    torch.testing.assert_close(logits(*load_model(final, device="cpu")), expected, rtol=1e-4, atol=1e-4)


def test_an_encoder_that_was_moved(tmp_path: Path) -> None:
    at_first = save_encoder("dinov2", tmp_path / "at first")
    base, run = trained("llava", "gated", at_first, tmp_path)
    expected = logits(*load_model(base, run, device="cpu"))
    now = at_first.rename(tmp_path / "now")
    command = ["export", str(run), str(tmp_path / "merged"), "--merge", "--dtype", "float32"]
    assert main(command) == 2
    assert not main([*command, "--encoders", str(now)])
    found = logits(*load_model(tmp_path / "merged", device="cpu"))  # which names where it is now
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_encoders_that_were_trained_go_along(train: str, encoder: Path, tmp_path: Path) -> None:
    base, run = trained("llava", "gated", {"model": str(encoder), "train": train}, tmp_path)
    expected = logits(*load_model(base, run, device="cpu"))
    exported = merge_and_export(run, tmp_path / "merged", dtype="float32", device="cpu")
    torch.testing.assert_close(logits(*load_model(exported, device="cpu")), expected, rtol=1e-4, atol=1e-4)


def test_a_second_stage_whose_projector_has_lora(encoder: Path, tmp_path: Path) -> None:
    """The projector of stage 1 goes along, as it was before its LoRA layers of stage 2."""
    base, first = save_tiny("llava", tmp_path / "base"), tmp_path / "first"
    arguments = ModelArguments(
        str(base),
        use_peft=True,
        lora_scope=[],
        train_projector=True,
        mixer={"kind": "interleave", "encoders": [str(encoder)]},
    )
    run_of(arguments, first)
    second = run_of(
        ModelArguments(
            str(base),
            use_peft=True,
            lora_r=4,
            lora_dropout=0.0,
            lora_scope=["language", "projector"],
            start_from=str(first),
        ),
        tmp_path / "second",
    )
    expected = logits(second.model.eval(), second.processing_class)
    assert torch.equal(logits(*load_model(base, tmp_path / "second", device="cpu")), expected)
    exported = merge_and_export(tmp_path / "second", tmp_path / "merged", dtype="float32", device="cpu")
    torch.testing.assert_close(logits(*load_model(exported, device="cpu")), expected, rtol=1e-4, atol=1e-4)


def test_lora_is_not_merged_into_an_encoder_of_four_bits(tmp_path: Path) -> None:
    spec = {"model": str(save_encoder("siglip", tmp_path / "siglip")), "train": "lora", "load_in_4bit": True}
    _, run = trained("llava", "gated", spec, tmp_path)
    with pytest.raises(ValueError, match="export without --merge"):
        merge_and_export(run, tmp_path / "merged", dtype="float32", device="cpu")
    assert not (tmp_path / "merged").exists()
    merge_and_export(run, tmp_path / "alone", merge=False)
    assert (tmp_path / "alone" / SETTINGS_FILE).is_file()


@pytest.mark.parametrize(("family", "kind"), [("llava_next", "concat"), ("paligemma", "additive")])
def test_a_composite_is_loaded_by_transformers(family: str, kind: str, encoder: Path, tmp_path: Path) -> None:
    base, run = trained(family, kind, encoder, tmp_path)
    trained_as, processor = load_model(base, run, device="cpu")
    expected = logits(trained_as, processor)
    command = ["export", str(run), str(tmp_path / "composite"), "--merge", "--composite", "--dtype", "float32"]
    assert not main(command)
    folder = tmp_path / "composite"
    assert not (folder / SETTINGS_FILE).exists()
    torch.testing.assert_close(logits(*load_model(folder, device="cpu")), expected, rtol=1e-4, atol=1e-4)
    # Where nothing of ours has been imported, and then the one module that has the tower.
    script = f"""
from transformers import AutoModelForImageTextToText
try:
    AutoModelForImageTextToText.from_pretrained({str(folder)!r})
except Exception as error:
    print("refused", "composite_vision_model" in str(error))
import mllm_align.vision.composite
model = AutoModelForImageTextToText.from_pretrained({str(folder)!r})
print(type(model).__name__, model.config.vision_config.model_type)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert said == ["refused", "True", type(trained_as.get_base_model()).__name__, "composite_vision_model"]


def test_a_composite_is_a_base_like_any_other(encoder: Path, tmp_path: Path) -> None:
    """It trains under NF4 with LoRA on its tower, is generated with, saved, loaded and merged."""
    _, run = trained("llava", "concat", encoder, tmp_path)
    folder = merge_and_export(run, tmp_path / "composite", dtype="float32", device="cpu", composite=True)
    arguments = ModelArguments(
        str(folder), dtype="float32", load_in_4bit=True, use_peft=True, lora_r=4, lora_dropout=0.0, train_vision=True
    )
    trainer = run_of(arguments, tmp_path / "more")
    moved = [name for name, p in trainer.model.named_parameters() if p.requires_grad and "mixed.encoders" in name]
    assert moved
    expected = logits(trainer.model.eval(), trainer.processing_class)
    again, processor = load_model(str(folder), tmp_path / "more", device="cpu", dtype="float32", load_in_4bit=True)
    assert torch.equal(logits(again, processor), expected)
    merged = merge_and_export(tmp_path / "more", tmp_path / "merged", dtype="float32", device="cpu")
    plain, stock = load_model(merged, device="cpu")
    inputs = processor(text=f"{processor.image_token}What?", images=[picture(0)], return_tensors="pt")
    written = plain.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert written.shape[1] == inputs["input_ids"].shape[1] + 4
    assert torch.equal(
        plain.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=False), written
    )
    assert logits(plain, stock).isfinite().all()


def test_a_composite_is_merged(encoder: Path, tmp_path: Path) -> None:
    _, run = trained("llava", "gated", encoder, tmp_path)
    with pytest.raises(ValueError, match="export with merge"):
        merge_and_export(run, tmp_path / "out", merge=False, composite=True)
    with pytest.raises(ValueError, match="'gated' is no part of a tower"):
        merge_and_export(run, tmp_path / "out", composite=True, device="cpu")
    assert not (tmp_path / "out").exists()
