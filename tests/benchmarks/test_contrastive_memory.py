"""Gradient caching changes what a contrastive batch costs, not what it computes."""

from __future__ import annotations

import pytest
import torch

from contrastive_memory import cached, one_graph
from shapes import PRESETS


@pytest.mark.parametrize("preset", ["tiny", "tiny-nf4"])
def test_both_sides_have_one_loss_and_one_gradient(preset: str) -> None:
    shape = PRESETS[preset]
    sides = [build(shape) for build in (one_graph, cached)]
    losses = [side.step(side.prepare(5)) for side in sides]
    assert losses[0] == pytest.approx(losses[1], abs=shape.tolerance)
    trained = [dict(side.model.named_parameters()) for side in sides]
    for name, parameter in trained[0].items():
        if parameter.grad is None:
            continue
        other = trained[1][name].grad
        scale = parameter.grad.abs().max().clamp(min=1e-9)
        tolerance = 1e-3 if shape.dtype == torch.float32 else 0.3
        torch.testing.assert_close(other / scale, parameter.grad / scale, atol=tolerance, rtol=0, msg=name)
