from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from mllm_align.objectives.dpo_losses import VARIANTS, LossType, dpo_loss, logistic
from ratios import lost

GIVEN = {"label_smoothing": 0.1, "gamma": 0.5, "discopop_tau": 0.05}


def options_of(name: str, **changes: float) -> dict[str, float]:
    return {key: (GIVEN | changes)[key] for key in VARIANTS[name].options}


def loss_of(name: str, chosen: torch.Tensor, rejected: torch.Tensor, beta: float = 0.3) -> torch.Tensor:
    return dpo_loss(chosen, rejected, loss_type=name, beta=beta, **options_of(name))


def test_the_table_has_every_name_of_the_type() -> None:
    assert tuple(VARIANTS) == get_args(LossType)
    assert [name for name, variant in VARIANTS.items() if variant.averaged] == ["ipo", "sigmoid_norm", "simpo"]
    assert [name for name, variant in VARIANTS.items() if not variant.reference] == ["simpo"]


@pytest.mark.parametrize("name", VARIANTS)
def test_passes_gradcheck(name: str) -> None:
    chosen = torch.tensor([-9.0, -0.4, 0.3, 12.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([3.0, -0.7, 0.2, -6.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c, r: loss_of(name, c, r), (chosen, rejected))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("distance", [-2e3, 2e3])
def test_float32_stays_finite_far_away(name: str, distance: float) -> None:
    chosen = torch.tensor([distance], requires_grad=True)
    rejected = torch.tensor([-distance], requires_grad=True)
    loss = loss_of(name, chosen, rejected, beta=1.0)
    loss.sum().backward()
    assert all(torch.isfinite(value).all() for value in (loss, chosen.grad, rejected.grad))


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in {"nca_pair", "bco_pair", "sppo_hard"}])
def test_losses_of_the_difference_feel_no_common_offset(name: str) -> None:
    chosen, rejected = torch.randn(2, 5, dtype=torch.float64)
    moved = loss_of(name, chosen + 4.0, rejected + 4.0)
    same = torch.allclose(moved, loss_of(name, chosen, rejected))
    assert same == (name not in {"apo_zero", "apo_down"})


@pytest.mark.parametrize("name", VARIANTS)
def test_a_better_chosen_response_near_the_start_lowers_the_loss(name: str) -> None:
    """At the start APO-down's two parts even out for the chosen response; DiscoPOP's slope is as published."""
    chosen = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    rejected = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    loss_of(name, chosen, rejected).sum().backward()
    if name == "discopop":
        assert chosen.grad == -rejected.grad == pytest.approx(0.3 * (5 * (1 - math.log(2)) - 0.75))
        return
    assert rejected.grad > 0
    assert chosen.grad < 0 or name in {"apo_down", "nca_pair"}


def test_ipo_on_sums_is_another_number() -> None:
    margin = torch.tensor(3.0, dtype=torch.float64)
    assert loss_of("ipo", margin, torch.zeros_like(margin), beta=0.1).item() == pytest.approx(4.0, abs=1e-9)


def test_discopop_is_the_logistic_loss_on_the_wrong_side_and_the_exponential_on_the_right() -> None:
    apart = torch.tensor([-40.0, 40.0], dtype=torch.float64)
    wrong, right = loss_of("discopop", apart, torch.zeros_like(apart)).tolist()
    assert wrong == pytest.approx(lost(-12.0))
    assert right == pytest.approx(2.718281828**-12.0, rel=1e-6)


def test_logistic_with_smoothing_is_lowest_at_its_odds() -> None:
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    best = x[logistic(x, 0.1).argmin()].item()
    assert best == pytest.approx(2.1972, abs=0.02)  # log(.9 / .1)
