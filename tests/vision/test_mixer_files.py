"""What is written of a mixer comes back whole, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from mixed import OPTIONS, mixed_tiny, prompts, shake
from mllm_align.families import family_of
from mllm_align.vision.attach import attach, detach, drawn_pixels
from mllm_align.vision.mixer_files import (
    SETTINGS_FILE,
    WEIGHTS_FILE,
    attach_saved,
    check_fingerprint,
    load_mixer_weights,
    save_mixer,
)
from tiny import tiny
from tiny_encoders import save_encoder
from tiny_further import save_further


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder("dinov2", tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def saved(tmp_path: Path, encoder: Path) -> Path:
    """A gated mixer of a tiny LLaVA."""
    model, processor, mixed = mixed_tiny("llava", "gated", encoder)
    shake(mixed)
    save_mixer(model, tmp_path / "run", processor)
    return tmp_path / "run"


@pytest.mark.parametrize("kind", OPTIONS)
@torch.no_grad()
def test_it_comes_back(kind: str, encoder: Path, tmp_path: Path, pictures: list[Any]) -> None:
    model, processor, mixed = mixed_tiny("llava", kind, encoder)
    shake(mixed)
    before = model(**prompts(processor, pictures)).logits
    save_mixer(model, tmp_path, processor)
    other, fresh = tiny("llava")
    fresh.tokenizer.padding_side = "left"
    attach_saved(other, tmp_path, fresh)
    check_fingerprint(other, fresh, tmp_path)
    assert torch.equal(other(**prompts(fresh, pictures)).logits, before)


@torch.no_grad()
def test_an_encoder_that_trained_whole_goes_along(encoder: Path, tmp_path: Path, pictures: list[Any]) -> None:
    model, processor, mixed = mixed_tiny("llava", "gated", {"model": str(encoder), "train": "full"})
    shake(mixed)
    for parameter in mixed.encoders.parameters():
        if parameter.requires_grad:
            parameter.mul_(1.3)
    before = model(**prompts(processor, pictures)).logits
    save_mixer(model, tmp_path, processor)
    other, fresh = tiny("llava")
    fresh.tokenizer.padding_side = "left"
    attach_saved(other, tmp_path, fresh)
    check_fingerprint(other, fresh, tmp_path)
    assert torch.equal(other(**prompts(fresh, pictures)).logits, before)


def test_the_stock_model_is_what_the_model_saves(encoder: Path, tmp_path: Path, pictures: list[Any]) -> None:
    model, processor, mixed = mixed_tiny("llava", "gated", encoder)
    shake(mixed)
    model.save_pretrained(tmp_path)
    assert not any("vision_mixer" in name for name in load_file(tmp_path / "model.safetensors"))
    loaded, report = type(tiny("llava")[0]).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    detach(model, processor)
    inputs = prompts(processor, pictures)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**inputs).logits, model(**inputs).logits)


def test_another_encoder_is_refused(saved: Path, tmp_path: Path) -> None:
    other = save_encoder("dinov2", tmp_path / "other", seed=1)
    model, processor = tiny("llava")
    with pytest.raises(ValueError, match="other features"):
        attach_saved(model, saved, processor, encoders=[str(other)])


def test_an_encoder_that_was_moved(saved: Path, encoder: Path, tmp_path: Path) -> None:
    settings = json.loads((saved / SETTINGS_FILE).read_text())
    settings["encoders"][0]["model"] = str(tmp_path / "gone")
    (saved / SETTINGS_FILE).write_text(json.dumps(settings))
    model, processor = tiny("llava")
    with pytest.raises(ValueError, match="neither a model's folder nor a model on the Hub"):
        attach_saved(model, saved, processor)
    attach_saved(model, saved, processor, encoders=[str(encoder)])
    check_fingerprint(model, processor, saved)


@pytest.mark.parametrize("change", ["missing", "more", "another encoder", "shape", "file"])
def test_weights_are_never_loaded_in_part(saved: Path, change: str) -> None:
    weights = load_file(saved / WEIGHTS_FILE)
    name = next(iter(weights))
    if change == "missing":
        del weights[name]
    elif change == "more":
        weights["mixer.another"] = torch.zeros(2)
    elif change == "another encoder":
        weights["encoders.1.model.weight"] = torch.zeros(2)
    elif change == "shape":
        weights[name] = torch.zeros(3, 5)
    save_file(weights, saved / WEIGHTS_FILE)
    if change == "file":
        (saved / WEIGHTS_FILE).unlink()
    model, processor = tiny("llava")
    with pytest.raises(ValueError, match="does not fit" if change != "file" else "could not be read"):
        attach_saved(model, saved, processor)


@pytest.mark.parametrize("part", ["mixer", "tower", "head"])
def test_other_outputs_than_those_saved_are_refused(saved: Path, part: str) -> None:
    model, processor = tiny("llava")
    mixed = attach_saved(model, saved, processor)
    check_fingerprint(model, processor, saved)
    with torch.no_grad():
        if part == "mixer":
            shake(mixed, seed=3)
        elif part == "tower":
            model.model.vision_tower.get_input_embeddings().weight.mul_(1.5)
        else:
            model.lm_head.weight.mul_(1.5)
    with pytest.raises(ValueError, match="logits" if part == "head" else "image tokens"):
        check_fingerprint(model, processor, saved)


def test_settings_that_cannot_be_read(saved: Path, encoder: Path) -> None:
    model, processor = tiny("llava")
    other, other_processor = tiny("internvl")
    with pytest.raises(ValueError, match="other widths"):
        attach_saved(other, saved, other_processor)
    text = (saved / SETTINGS_FILE).read_text()
    (saved / SETTINGS_FILE).write_text(text.replace('"version": 1', '"version": 99'))
    with pytest.raises(ValueError, match="another version"):
        attach_saved(model, saved, processor)
    (saved / SETTINGS_FILE).write_text("{")
    with pytest.raises(ValueError, match="could not be read"):
        attach_saved(model, saved, processor)
    (saved / SETTINGS_FILE).write_text(text)
    with pytest.raises(ValueError, match="has no mixer"):
        load_mixer_weights(model, saved, processor)
    attach(model, {"kind": "concat"}, [str(encoder)], processor)
    with pytest.raises(ValueError, match="is 'gated', the model's 'concat'"):
        load_mixer_weights(model, saved, processor)


def test_weights_to_begin_with_are_those_of_the_same_encoders(saved: Path, encoder: Path, tmp_path: Path) -> None:
    other = str(save_encoder("dinov2", tmp_path / "other", seed=1))
    for encoders, says in (
        ([other], "other features"),
        ([{"model": str(encoder), "size": 28}], "has side 28 now, it had"),
        ([str(encoder), other], "has 1 further encoders, the model's 2"),
    ):
        model, processor = tiny("llava")
        attach(model, {"kind": "gated"}, encoders, processor)
        with pytest.raises(ValueError, match=says):
            load_mixer_weights(model, saved, processor)
    model, processor = tiny("llava")
    attach(model, {"kind": "gated"}, [str(encoder)], processor)
    load_mixer_weights(model, saved, processor)
    check_fingerprint(model, processor, saved)


@torch.no_grad()
def test_an_encoder_that_reads_what_the_base_normalised(tmp_path: Path) -> None:
    """MMVP's code hands DINOv2 the very pixels that CLIP reads; here its own statistics are others than the base's."""
    folder, spec = tmp_path / "encoder", {"normalise": "base"}
    spec["model"] = str(save_further("registers", folder))
    model, processor, mixed = mixed_tiny("llava", "gated", spec)
    pixels = drawn_pixels(processor, family_of(model))["pixel_values"]
    (seen,) = mixed.sees(pixels, None, (4, 4))
    assert seen is not None
    expected = AutoModel.from_pretrained(folder).eval()(pixels).last_hidden_state[:, 5:]
    torch.testing.assert_close(seen.values, expected, atol=2e-5, rtol=2e-4)

    save_mixer(model, tmp_path / "run", processor)
    other, fresh = tiny("llava")
    (again,) = attach_saved(other, tmp_path / "run", fresh).sees(pixels, None, (4, 4))
    assert again is not None
    assert torch.equal(again.values, seen.values)
    detach(other, fresh)
    attach(other, {"kind": "gated"}, [str(folder)], fresh)
    with pytest.raises(ValueError, match=r"has normalise own now, it had base .* set normalise to base"):
        load_mixer_weights(other, tmp_path / "run", fresh)
