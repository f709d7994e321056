"""Towers of several stages as one: features beside each other, loaded by AutoModel, read by what reads a tower."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from mllm_align.data.mine.encoder import ImageEmbedder
from mllm_align.vision.staged import StagedDualEncoder, StagedVisionModel
from mllm_align_eval.dual_encoder import DualEncoder
from tiny_duals import captioned, save_dual

TEXTS = [row["chosen"] for row in captioned(4)]
IMAGES = [row["image"] for row in captioned(4)]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def stages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three dual encoders with one text tower, and the folder of all of them."""
    root = tmp_path_factory.mktemp(request.param)
    folders = [save_dual(request.param, root / f"stage-{seed}", seed=seed) for seed in range(3)]
    first = AutoModel.from_pretrained(folders[0]).state_dict()
    for folder in folders[1:]:
        model = AutoModel.from_pretrained(folder)
        model.load_state_dict({key: value for key, value in first.items() if key.startswith("text_")}, strict=False)
        model.save_pretrained(folder)
    whole = save_dual(request.param, root / "staged")  # for its processor
    StagedDualEncoder.from_stages(folders).save_pretrained(whole)
    return [*folders, whole]


def test_cosines_are_the_mean_over_stages(stages: list[Path]) -> None:
    *single, whole = (DualEncoder(folder, device="cpu") for folder in stages)
    found = whole.similarities(IMAGES, TEXTS)
    alone = [encoder.similarities(IMAGES, TEXTS) for encoder in single]
    np.testing.assert_allclose(found, np.mean(alone, axis=0), atol=1e-6)
    assert np.abs(alone[0] - alone[1]).max() > 1e-2
    vectors = whole.images(IMAGES)
    wanted = np.concatenate([encoder.images(IMAGES) for encoder in single], axis=1) / 3**0.5
    np.testing.assert_allclose(vectors, wanted, atol=1e-6)


def test_it_is_a_vision_model_of_all_widths(stages: list[Path], tmp_path: Path) -> None:
    *single, whole = (AutoModel.from_pretrained(folder).eval() for folder in stages)
    whole.vision_model.save_pretrained(tmp_path)
    tower = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(tower, StagedVisionModel)
    size = tower.config.image_size
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        found = tower(pixel_values=pixels, output_hidden_states=True)
        wanted = [model.vision_model(pixel_values=pixels, output_hidden_states=True) for model in single]
        larger = tower(torch.randn(1, 3, size, size + size // 4), interpolate_pos_encoding=True).last_hidden_state
    assert torch.equal(found.last_hidden_state, torch.cat([each.last_hidden_state for each in wanted], dim=-1))
    assert torch.equal(found.pooler_output, torch.cat([each.pooler_output for each in wanted], dim=-1))
    assert len(found.hidden_states) == len(wanted[0].hidden_states)
    for layer, state in enumerate(found.hidden_states):
        assert torch.equal(state, torch.cat([each.hidden_states[layer] for each in wanted], dim=-1))
    assert found.last_hidden_state.shape[-1] == tower.config.hidden_size == 3 * 64
    assert larger.shape[1] > found.last_hidden_state.shape[1]


def test_images_are_embedded_for_mining(stages: list[Path]) -> None:
    vectors = ImageEmbedder(stages[-1], device="cpu")(IMAGES)
    np.testing.assert_allclose(vectors, DualEncoder(stages[-1], device="cpu").images(IMAGES), atol=1e-6)


def test_other_towers_are_no_stages(stages: list[Path], tmp_path: Path) -> None:
    kind = "clip" if AutoModel.from_pretrained(stages[0]).config.model_type == "clip" else "siglip"
    with pytest.raises(ValueError, match="has another text tower"):
        StagedDualEncoder.from_stages([stages[0], save_dual(kind, tmp_path / "other", seed=9)])
    other = save_dual("siglip" if kind == "clip" else "clip", tmp_path / "kind")
    with pytest.raises(ValueError, match="has another configuration"):
        StagedDualEncoder.from_stages([stages[0], other])
    with pytest.raises(ValueError, match="no stages"):
        StagedDualEncoder.from_stages([])
