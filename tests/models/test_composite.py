"""A mixer in the tower: what AutoModel loads from a configuration gives what the mixer gave, where that can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from mixed import mixed_tiny, prompts, shake
from mllm_align.models.composite import check_composite, make_composite
from mllm_align.vision.attach import attach
from mllm_align.vision.mixed_vision import mixed_of
from runs import picture
from tiny import tiny
from tiny_encoders import ENCODERS, save_encoder
from tiny_further import FURTHER, save_further

WORKS = [
    ("llava", "concat"),
    ("llava", "additive"),
    ("llava_next", "concat"),
    ("llava_next", "additive"),
    ("llava_onevision", "concat"),
    ("llava_onevision", "additive"),
    ("paligemma", "concat"),
    ("paligemma", "additive"),
    ("gemma3", "additive"),
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder("dinov2", tmp_path_factory.mktemp("encoder"))


@torch.no_grad()
def logits(model: Any, processor: Any) -> torch.Tensor:
    return model.eval()(**prompts(processor, [picture(0), picture(1)])).logits


@pytest.mark.parametrize(("family", "kind"), WORKS)
def test_automodel_gives_what_the_mixer_gave(family: str, kind: str, encoder: Path, tmp_path: Path) -> None:
    model, processor, mixed = mixed_tiny(family, kind, encoder, **({"norm": "layer"} if kind == "concat" else {}))
    shake(mixed)
    expected, unmixed = logits(model, processor), logits(*tiny(family))
    before = make_composite(model, processor)
    assert mixed_of(model.base_model) is None
    torch.testing.assert_close(logits(model, processor), expected, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    check_composite(tmp_path, processor, before, dtype=torch.float32, device="cpu")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded, processor), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, unmixed, atol=1e-2)


@pytest.mark.parametrize("name", [*ENCODERS, *FURTHER])
@pytest.mark.parametrize("kind", ["concat", "additive"])
def test_with_every_kind_of_encoder(name: str, kind: str, tmp_path: Path) -> None:
    folder = save_further(name, tmp_path / name)
    model, processor, mixed = mixed_tiny("llava", kind, {"model": str(folder), "layer": -1})
    shake(mixed)
    expected = logits(model, processor)
    before = make_composite(model, processor)
    model.save_pretrained(tmp_path / "composite")
    check_composite(tmp_path / "composite", processor, before, dtype=torch.float32, device="cpu")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "composite")
    torch.testing.assert_close(logits(loaded, processor), expected, rtol=1e-4, atol=1e-4)


def test_several_encoders_read_in_several_ways(encoder: Path, tmp_path: Path) -> None:
    siglip = save_encoder("siglip", tmp_path / "siglip")
    specs = [
        {"model": str(encoder), "layer": [0, -2], "normalise": "base"},
        {"model": str(siglip), "size": 32},
    ]
    model, processor = tiny("llava_next")
    processor.tokenizer.padding_side = "left"
    torch.manual_seed(0)
    shake(attach(model, {"kind": "concat", "norm": "layer"}, specs, processor))
    expected = logits(model, processor)
    make_composite(model, processor)
    model.save_pretrained(tmp_path / "composite")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "composite")
    torch.testing.assert_close(logits(loaded, processor), expected, rtol=1e-4, atol=1e-4)
    assert loaded.config.vision_config.hidden_size == model.model.multi_modal_projector.linear_1.in_features


REFUSED = [
    ("llava", "gated", {}, "'gated' is no part of a tower"),
    ("gemma3", "concat", {}, "no linear layer that reads"),
    ("qwen2_5_vl", "concat", {}, "not read one layer of one tower, view by view"),
    ("pixtral", "concat", {}, "not read one layer of one tower, view by view"),
    ("idefics3", "concat", {}, "always has a tower of its own class|not read one layer"),
    ("internvl", "concat", {}, "with such a tower|always has a tower|not read one layer"),
    ("llava", "concat", {"pixels": "own"}, "pixels of its own"),
    ("llava", "concat", {"load_in_4bit": True}, "4-bit weights"),
]


@pytest.mark.parametrize(("family", "kind", "spec", "message"), REFUSED)
def test_what_is_refused_stays_as_it_was(
    family: str, kind: str, spec: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = save_encoder("siglip" if "load_in_4bit" in spec else "dinov2", tmp_path / "encoder")
    model, processor, mixed = mixed_tiny(family, kind, {"model": str(folder), **spec})
    shake(mixed)
    expected = logits(model, processor)
    with pytest.raises(ValueError, match=f"({message}).*export it without composite"):
        make_composite(model, processor)
    assert mixed_of(model.base_model) is mixed
    assert torch.equal(logits(model, processor), expected)


def test_several_layers_of_the_tower_are_refused(encoder: Path) -> None:
    model, processor = tiny("llava")
    config = type(model.config).from_dict(model.config.to_dict() | {"vision_feature_layer": [-2, -1]})
    model = type(model)(config).eval()
    attach(model, {"kind": "additive"}, [str(encoder)], processor)
    with pytest.raises(ValueError, match="does not read one layer of one tower"):
        make_composite(model, processor)


def test_without_a_mixer_it_is_refused() -> None:
    with pytest.raises(ValueError, match="this one has none"):
        make_composite(*tiny("llava"))


def test_one_that_is_read_back_otherwise_is_refused(encoder: Path, tmp_path: Path) -> None:
    model, processor, mixed = mixed_tiny("llava", "concat", encoder)
    shake(mixed)
    before = make_composite(model, processor)
    state = model.state_dict()
    lost = next(name for name in state if ".mixed.encoders.0." in name and name.endswith("weight"))
    model.save_pretrained(tmp_path / "lacking", state_dict={k: v for k, v in state.items() if k != lost})
    with pytest.raises(ValueError, match="is not read back as it was"):
        check_composite(tmp_path / "lacking", processor, before, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        model.model.multi_modal_projector.linear_1.weight.mul_(-1)
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="is not read back as it was \\(image tokens"):
        check_composite(tmp_path / "other", processor, before, dtype=torch.float32, device="cpu")
