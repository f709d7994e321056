"""Soft targets against loops in float64, and InfoNCE with a slow copy's keys."""

from __future__ import annotations

import math

import pytest
import torch

from mllm_align.contract import Ragged, Signals
from mllm_align.objectives import InfoNCE
from mllm_align.objectives.soft_targets import soft_contrast


def by_loop(line: list[float], slow: list[float], own: int, counts: list[bool], share: float) -> float:
    there = [m for m, flag in enumerate(counts) if flag]
    log_z = math.log(sum(math.exp(line[m]) for m in there))
    slow_z = sum(math.exp(slow[m]) for m in there)
    target = {m: share * math.exp(slow[m]) / slow_z + (1 - share) * (m == own) for m in there}
    return -sum(target[m] * (line[m] - log_z) for m in there)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_loss_is_that_of_a_loop(share: float) -> None:
    similarities, slow = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    counts = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0], [0, 0, 1, 0, 0]], dtype=torch.bool)
    own = torch.tensor([4, 0, 2])
    losses = soft_contrast(similarities, slow, own, counts, share)
    expected = [
        by_loop(similarities[n].tolist(), slow[n].tolist(), int(own[n]), counts[n].tolist(), share) for n in range(3)
    ]
    assert losses.tolist() == pytest.approx(expected, abs=1e-12)
    similarities.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: soft_contrast(s, slow, own, counts, share), (similarities,))


def test_info_nce_chooses_among_the_slow_copy_s_features() -> None:
    objective = InfoNCE(temperature=0.5, momentum=0.995, soft_targets=0.4)
    torch.manual_seed(1)
    sides = [torch.randn(3, 4, dtype=torch.float64) for _ in range(4)]
    names = [feature.name for feature in objective.needs.features]
    assert [feature.momentum for feature in objective.needs.features] == [None, None, 0.995, 0.995]
    rows = torch.arange(3)
    features = {name: Ragged(side, rows) for name, side in zip(names, sides, strict=True)}
    found = objective(Signals({}, {}, features=features, sources=("x",) * 3), None)
    image, text, slow_image, slow_text = ([v / math.sqrt(float(v @ v)) for v in side] for side in sides)
    expected = 0.0
    for k in range(3):
        for own, slow, keys in ((image, slow_image, slow_text), (text, slow_text, slow_image)):
            line = [2 * float(own[k] @ key) for key in keys]
            other = [2 * float(slow[k] @ key) for key in keys]
            expected += 0.5 * by_loop(line, other, k, [True] * 3, 0.4)
    assert found.terms[0].sum.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("options", [{"momentum": 1.0}, {"momentum": -0.1}, {"soft_targets": 0.4}])
def test_options_without_a_meaning(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        InfoNCE(**options)  # type: ignore[arg-type]
