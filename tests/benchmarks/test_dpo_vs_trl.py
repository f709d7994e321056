"""TRL's trainer and ours compute the same DPO step on the same rows."""

from __future__ import annotations

import math

import pytest
import torch
from trl import DPOTrainer

from comparison import Case
from dpo_vs_trl import Ours, Peer
from shapes import PRESETS


@pytest.mark.parametrize("preset", ["tiny", "tiny-nf4"])
def test_both_trainers_agree(preset: str) -> None:
    shape = PRESETS[preset]
    exact = preset == "tiny"
    ours, peer = Ours(shape), Peer(shape)
    assert type(peer.trainer) is DPOTrainer
    assert peer.trainer.loss_types == ["sigmoid"]
    for length in shape.lengths:
        data = peer.prepare(Case(length))
        assert data["completion_mask"].sum(1).tolist() == [length] * (2 * shape.batch)
        assert data["input_ids"].shape == (2 * shape.batch, shape.prompt_tokens + shape.image_tokens + length)
        losses = [side.step(side.prepare(Case(length))) for side in (ours, peer)]
        assert abs(losses[0] - losses[1]) < (1e-5 if exact else 0.05)
        # At the start value any two trainers would agree.
        assert abs(losses[0] - math.log(2)) > (0.001 if exact else 0)
    wanted, found = ({n: p.grad for n, p in side.model.named_parameters() if p.requires_grad} for side in (peer, ours))
    assert wanted.keys() == found.keys()
    for name in wanted if exact else ():
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("side", [Ours, Peer])
def test_both_checkpoint_activations_where_the_preset_says_so(side: type) -> None:
    for preset in ("tiny", "tiny-nf4"):
        model = side(PRESETS[preset]).model
        layers = [m for m in model.modules() if hasattr(m, "gradient_checkpointing")]
        assert layers
        assert {layer.gradient_checkpointing for layer in layers} == {PRESETS[preset].checkpointing}
