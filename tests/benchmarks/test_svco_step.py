"""Both plans compute the same S-VCO step, with the reference computed and cached."""

from __future__ import annotations

import math

import pytest
import torch

import svco_step
from comparison import Case
from flops import count_flops
from shapes import PRESETS
from svco_step import CACHED, Ours, Published

START = 4 * math.log(2)


@pytest.mark.parametrize("preset", ["tiny", "tiny-nf4"])
def test_both_plans_agree(preset: str) -> None:
    shape = PRESETS[preset]
    ours, peer = Ours(shape), Published(shape)
    for length in shape.lengths:
        losses = [
            side.step(side.prepare(Case(length, variant)))
            for side, variant in ((ours, ""), (ours, CACHED), (peer, ""))
        ]
        assert max(losses) - min(losses) < (1e-5 if preset == "tiny" else 0.05)
        # At the start value any two plans would agree.
        assert abs(losses[0] - START) > (0.01 if preset == "tiny" else 0)
    wanted, found = ({n: p.grad for n, p in side.model.named_parameters() if p.requires_grad} for side in (peer, ours))
    for name in wanted if preset == "tiny" else ():
        # Ours stepped twice as often.
        torch.testing.assert_close(found[name], 2 * wanted[name], rtol=1e-3, atol=1e-5)


def test_a_cached_reference_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = PRESETS["tiny"]
    ours, peer = Ours(shape), Published(shape)
    computed, cached = ours.prepare(Case(9)), ours.prepare(Case(9, CACHED))
    flops = [count_flops(lambda data=data: ours.step(data)) for data in (computed, cached)]
    assert flops[1] < 0.8 * flops[0]
    assert count_flops(lambda: peer.step(peer.prepare(Case(9)))) > 1.5 * flops[0]
    monkeypatch.setattr(svco_step, "AdaptersOff", lambda: pytest.fail("the reference was asked for"))
    ours.step(cached)
