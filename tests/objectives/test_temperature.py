"""The learned temperature: its bound, at the start and while it is trained."""

from __future__ import annotations

import math

import pytest
import torch

from mllm_align.objectives.temperature import bounded_scale, check_temperature, log_scale_of


def test_a_start_below_the_bound_is_refused() -> None:
    check_temperature("Mine", 0.01)
    with pytest.raises(ValueError, match=r"Mine: temperature must be at least 0\.01, got 0\.009"):
        check_temperature("Mine", 0.009)


@pytest.mark.parametrize("learn", [True, False])
def test_the_scale_is_one_over_it(learn: bool) -> None:
    parameter = log_scale_of(0.07, learn)
    assert parameter.requires_grad == learn
    assert bounded_scale(parameter).item() == pytest.approx(1 / 0.07)
    assert parameter.item() == pytest.approx(-math.log(0.07))


def test_at_the_bound_it_still_has_a_gradient() -> None:
    parameter = log_scale_of(0.01, True)
    with torch.no_grad():
        parameter.add_(1)
    scale = bounded_scale(parameter)
    assert scale.item() == pytest.approx(100)
    assert parameter.item() == pytest.approx(math.log(100))
    scale.backward()
    assert parameter.grad is not None
    assert parameter.grad.item() == pytest.approx(100)
