"""Synthetic negatives against vectors that are made one by one."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mllm_align.objectives import mochi
from mllm_align.objectives.mochi import Draws, Mixing, drawn, generator_of, synthetic


def given(rows: int = 4, keys: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Draws]:
    """Anchors, keys, negatives (of the last anchor none, of the one before it one), and draws."""
    anchors, others = (F.normalize(torch.randn(n, 5, dtype=torch.float64), dim=1) for n in (rows, keys))
    negative = torch.rand(rows, keys) < 0.7
    negative[-1], negative[-2] = False, torch.arange(keys) == 2
    negative[0] = True
    return anchors, others, negative, drawn(rows, Mixing(3, 6, 4), torch.Generator().manual_seed(0), anchors)


def by_loop(anchor: torch.Tensor, keys: torch.Tensor, negative: list[bool], row: int, draws: Draws) -> list[float]:
    order = sorted((m for m, flag in enumerate(negative) if flag), key=lambda m: -float(anchor @ keys[m]))[:3]
    made = []
    for first, second, a in zip(draws.first[row], draws.second[row], draws.share[row], strict=True):
        one, other = (keys[order[math.floor(float(u) * len(order))]] for u in (first, second))
        made.append(a * one + (1 - a) * other)
    for place, part in zip(draws.key[row], draws.part[row], strict=True):
        b = part / 2
        made.append(b * anchor + (1 - b) * keys[order[math.floor(float(place) * len(order))]])
    return [float(anchor @ vector) / math.sqrt(float(vector @ vector)) for vector in made]


@pytest.mark.parametrize("at_once", [1, 70, mochi.MAX_NUMBERS])
def test_cosines_are_those_of_vectors(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mochi, "MAX_NUMBERS", at_once)
    anchors, keys, negative, draws = given()
    found, counts = synthetic(anchors, keys, negative, 3, draws)
    assert found.shape == counts.shape == (4, 10)
    assert counts.all(dim=1).tolist() == [True, True, True, False]
    assert counts.any(dim=1).tolist() == [True, True, True, False]
    for row in range(3):
        expected = by_loop(anchors[row], keys, negative[row].tolist(), row, draws)
        assert found[row].tolist() == pytest.approx(expected, abs=1e-12)


def test_the_gradient_is_that_of_constant_vectors() -> None:
    """It reaches the anchor that is compared, and neither the keys nor the anchor within a mixture."""
    anchors, keys, negative, draws = given()
    anchors, keys = anchors.requires_grad_(), keys.requires_grad_()
    found, _ = synthetic(anchors, keys, negative, 3, draws)
    arriving = torch.randn_like(found)
    got, none = torch.autograd.grad((found * arriving)[:3].sum(), (anchors, keys), allow_unused=True)
    assert none is None
    for row in range(3):
        order = [m for m in keys.detach().mv(anchors[row].detach()).argsort(descending=True) if negative[row, m]][:3]
        own, expected = anchors[row].detach(), torch.zeros(5, dtype=torch.float64)
        for n in range(6):
            places = (math.floor(float(u[row, n]) * len(order)) for u in (draws.first, draws.second))
            one, other = (keys[order[place]].detach() for place in places)
            share = draws.share[row, n]
            expected += arriving[row, n] * F.normalize(share * one + (1 - share) * other, dim=0)
        for n in range(4):
            key, b = keys[order[math.floor(float(draws.key[row, n]) * len(order))]].detach(), draws.part[row, n] / 2
            expected += arriving[row, 6 + n] * F.normalize(b * own + (1 - b) * key, dim=0)
        torch.testing.assert_close(got[row], expected, atol=1e-12, rtol=0)


def test_vectors_that_cancel_each_other_are_numbers() -> None:
    keys = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    half = torch.full((1, 2), 0.5)
    draws = Draws(torch.tensor([[0.0, 0.9]]), torch.tensor([[0.9, 0.0]]), half, torch.zeros(1, 1), torch.ones(1, 1))
    anchor = torch.tensor([[-1.0, 0.0]], requires_grad=True)
    found, _ = synthetic(anchor, keys, torch.ones(1, 2, dtype=torch.bool), 2, draws)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert anchor.grad is not None
    assert torch.isfinite(anchor.grad).all()


def test_draws_are_those_of_the_rows_whatever_their_order() -> None:
    mixing = Mixing(3, 5, 2)
    like = torch.zeros(1)

    def of(ids: tuple[str, ...], seed: int = 0) -> torch.Tensor:
        return torch.cat(drawn(3, mixing, generator_of(ids, seed), like), dim=1)

    assert torch.equal(of(("a", "b", "c")), of(("c", "a", "b")))
    assert not torch.equal(of(("a", "b", "c")), of(("a", "b", "d")))
    assert not torch.equal(of(("a", "b", "c")), of(("a", "b", "c"), seed=1))
    assert torch.equal(of(()), of(()))
    assert of(()).shape == (3, 3 * 5 + 2 * 2)
    assert 0 <= of(()).min() <= of(()).max() < 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"hardest": 0}, "hardest must be a whole number of at least 1, got 0"),
        ({"of_keys": -1}, "of_keys must be a whole number of at least 0, got -1"),
        ({"of_anchor": 0.5}, "of_anchor must be a whole number of at least 0, got 0.5"),
        ({"of_keys": 0, "of_anchor": 0}, "are both 0: leave mixing out"),
    ],
)
def test_options_without_a_meaning(options: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Mixing(**options)
