"""A tuned tower in a vision-language model: its features there, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from mllm_align.models import load_model, put_tower
from mllm_align.vision.staged import StagedDualEncoder
from tiny import save_tiny
from tiny_duals import save_dual

FAMILIES = {"llava": "clip", "llava_next": "clip", "llava_onevision": "siglip", "paligemma": "siglip"}


def dual_of(family: str, model: Path, folder: Path, **changes: Any) -> Path:
    """A dual encoder whose image tower has the configuration, weights and pixels of a tiny LVLM's."""
    whole, processor = load_model(model, device="cpu")
    made = AutoModel.from_pretrained(save_dual(FAMILIES[family], folder))
    tower = whole.model.vision_tower
    config = type(made.config)(
        text_config=made.config.text_config.to_dict(),
        vision_config=tower.config.to_dict() | {"vision_use_head": True} | changes,
    )
    torch.manual_seed(3)
    made = type(made)(config)
    if not changes:
        made.vision_model.load_state_dict(tower.state_dict(), strict=False)
    made.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tower_gives_its_own_features_there(family: str, tmp_path: Path) -> None:
    model = save_tiny(family, tmp_path / "model")
    dual = dual_of(family, model, tmp_path / "dual")
    before, _ = load_model(model, device="cpu")
    same, _ = load_model(put_tower(model, dual, tmp_path / "same"), device="cpu")
    assert all(torch.equal(value, before.state_dict()[key]) for key, value in same.state_dict().items())
    tuned = AutoModel.from_pretrained(dual)
    with torch.no_grad():
        for parameter in tuned.vision_model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    tuned.save_pretrained(dual)
    found, processor = load_model(put_tower(model, dual, tmp_path / "put"), device="cpu")
    size = found.config.vision_config.image_size
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        wanted = tuned.vision_model.eval()(pixel_values=pixels).last_hidden_state
        torch.testing.assert_close(found.model.vision_tower(pixel_values=pixels).last_hidden_state, wanted)
        assert not torch.allclose(before.model.vision_tower(pixel_values=pixels).last_hidden_state, wanted)
    assert processor.image_processor.to_dict() == load_model(model, device="cpu")[1].image_processor.to_dict()
    moved = [key for key, value in found.state_dict().items() if not torch.equal(value, before.state_dict()[key])]
    assert moved
    assert all("vision_tower" in key for key in moved)


def test_what_does_not_fit(tmp_path: Path) -> None:
    model = save_tiny("llava", tmp_path / "model")
    dual = dual_of("llava", model, tmp_path / "dual")
    with pytest.raises(ValueError, match="its num_hidden_layers is 3, not 2"):
        put_tower(model, dual_of("llava", model, tmp_path / "deep", num_hidden_layers=3), tmp_path / "a")
    with pytest.raises(ValueError, match="its model_type is 'siglip_vision_model', not 'clip_vision_model'"):
        put_tower(model, save_dual("siglip", tmp_path / "siglip"), tmp_path / "a")
    StagedDualEncoder.from_stages([dual, dual]).save_pretrained(tmp_path / "staged")
    with pytest.raises(ValueError, match="holds the towers of 2 stages"):
        put_tower(model, tmp_path / "staged", tmp_path / "a")
    with pytest.raises(ValueError, match="cannot load the tower"):
        put_tower(model, tmp_path / "nothing", tmp_path / "a")
    with pytest.raises(ValueError, match="there is no folder"):
        put_tower(tmp_path / "nothing", dual, tmp_path / "a")
    with pytest.raises(ValueError, match="has something in it"):
        put_tower(model, dual, model)
    _, processor = load_model(model, device="cpu")
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    processor.image_processor.save_pretrained(dual)
    for file in ("processor_config.json",):
        (dual / file).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="reads pixels with image_mean"):
        put_tower(model, dual, tmp_path / "a")
    assert not (tmp_path / "a").exists()
