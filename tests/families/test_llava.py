"""LLaVA reads an inner layer of its tower: what lies behind it is not adapted."""

from __future__ import annotations

import pytest

from mllm_align.families import family_of
from tiny import tiny


@pytest.mark.parametrize(
    ("layer", "adapted"),
    [(-1, {"0", "1"}), (-2, {"0"}), (2, {"0", "1"}), (1, {"0"}), ([-3, 1], {"0"}), (0, set())],
)
def test_adapted_tower_layers_end_at_the_layer_that_is_read(layer: int | list[int], adapted: set[str]) -> None:
    model, _ = tiny("llava")
    model.config.vision_feature_layer = layer
    targets = family_of(model).lora_targets(model, ["vision"])
    assert {name.split(".layers.")[1].split(".")[0] for name in targets} == adapted
