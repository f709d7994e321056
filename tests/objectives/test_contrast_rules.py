"""Every rule of the grid against loops over lists, the numbers that are known of it, and its gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mllm_align.objectives.contrast_rules import (
    INFO_NCE,
    Rule,
    contrast,
    kept_negatives,
    options_from,
    positive_weights,
)

SCALE = torch.tensor(5.0, dtype=torch.float64)
DCL = Rule(positive_weight=0.0)
RULES = {
    "info_nce": INFO_NCE,
    "dcl": DCL,
    "dclw": Rule(positive_weight=0.0, sigma=0.5),
    "hcl": Rule(beta=1.0, tau_plus=0.1),
    "hcl, much owed": Rule(beta=0.5, tau_plus=0.6),
    "debiased": Rule(tau_plus=0.1),
    "hn_nce": Rule(positive_weight=0.7, beta=0.5),
    "llave": Rule(hardness=9.0),
    "llave, in the batch": Rule(hardness=9.0, hardness_on="in_batch"),
    "llave, listed": Rule(hardness=9.0, hardness_on="explicit"),
    "uni_me": Rule(margin=0.1, hardest=2),
    "all of it": Rule(0.5, 0.3, 0.05, 2.0, "all", 0.3, 4, 0.7),
}


def drawn(seed: int = 0, rows: int = 5, columns: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cosines; own keys; which keys count: of one anchor its own alone, of one row not even that."""
    generator = torch.Generator().manual_seed(seed)
    cosines = 2 * torch.rand(rows, columns, generator=generator, dtype=torch.float64) - 1
    own = torch.arange(rows)
    counts = torch.rand(rows, columns, generator=generator) < 0.8
    counts[own, own] = True
    counts[0] = own[0] == torch.arange(columns)
    counts[1] = True
    return cosines, own, counts


def by_loop(
    cosines: list[list[float]],
    own: list[int],
    counts: list[list[bool]],
    rule: Rule,
    explicit: list[bool] | None = None,
) -> list[float]:
    """The losses as the papers have them, sums of exponentials, for anchors whose own key counts."""
    scale, found = SCALE.item(), []
    total = sum(math.exp(line[k] / rule.sigma) for line, k in zip(cosines, own, strict=True)) if rule.sigma else 0.0
    for line, k, there in zip(cosines, own, counts, strict=True):
        left = [j for j, flag in enumerate(there) if flag and j != k]
        if rule.margin is not None:
            left = [j for j in left if line[j] <= line[k] + rule.margin]
        left = sorted(left, key=lambda j: -line[j])[: rule.hardest]
        if not left:
            found.append(0.0)
            continue
        logits = {}
        for j in left:
            listed = explicit is not None and explicit[j]
            hard = {"all": True, "explicit": listed, "in_batch": not listed}[rule.hardness_on]
            logits[j] = scale * line[j] + rule.hardness * line[j] * hard
        mean = sum(math.exp(rule.beta * value) for value in logits.values()) / len(left)
        below = sum(math.exp(rule.beta * value) / mean * math.exp(value) for value in logits.values())
        positive = math.exp(scale * line[k])
        below = (below - rule.tau_plus * len(left) * positive) / (1 - rule.tau_plus)
        below = max(below, len(left) * math.exp(-scale))
        weight = 2 - len(own) * math.exp(line[k] / rule.sigma) / total if rule.sigma else 1.0
        found.append(math.log(rule.positive_weight * positive + below) - weight * scale * line[k])
    return found


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("seed", range(3))
def test_losses_are_those_of_loops(rule: Rule, seed: int) -> None:
    cosines, own, counts = drawn(seed)
    explicit = torch.arange(8) >= 6
    for listed in (None, explicit):
        got = contrast(SCALE * cosines, own, counts, SCALE, rule, explicit=listed)
        told = None if listed is None else listed.tolist()
        assert got.tolist() == pytest.approx(
            by_loop(cosines.tolist(), own.tolist(), counts.tolist(), rule, told), abs=1e-12
        )
        assert got[0] == 0


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if not rule.hardness])
def test_gradients(name: str) -> None:
    cosines, own, counts = drawn(3)
    scale = SCALE.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda c, s: contrast(s * c, own, counts, s, RULES[name]), (cosines.requires_grad_(), scale)
    )


def test_a_debt_that_is_just_covered_or_not_has_a_gradient() -> None:
    """Where what is left of the negatives is nothing, its logarithm is no number; the least they can be is taken."""
    values = [[0.5, 0.5, 0.5], [0.9, -1.0, -1.0], [1.0, 1 - math.log(2) / 5, 1 - math.log(2) / 5]]
    cosines = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    whole = torch.ones(3, 3, dtype=torch.bool)
    losses = contrast(SCALE * cosines, torch.zeros(3, dtype=torch.long), whole, SCALE, Rule(tau_plus=0.5))
    expected = [math.log(1 + 2 * max((1 - 0.5) / 0.5, math.exp(-5 - 2.5))), math.log1p(2 * math.exp(-5 - 4.5))]
    assert losses.tolist() == pytest.approx([*expected, math.log1p(2 * math.exp(-5 - 5))], rel=1e-12)
    losses.sum().backward()
    assert cosines.grad is not None
    assert torch.isfinite(cosines.grad).all()


@pytest.mark.parametrize("count", [2, 7, 100])
def test_constant_similarities(count: int) -> None:
    """log N, log(N - 1) decoupled, log N with continuous weights, whatever the constant is."""
    own, there = torch.arange(count), torch.ones(count, count, dtype=torch.bool)
    weights = torch.rand(count, count, dtype=torch.float64)
    for constant in (-1.0, 0.3, 1.0):
        for scale in (1.0, 100.0):
            given = torch.full((count, count), constant * scale, dtype=torch.float64)
            at = torch.tensor(scale, dtype=torch.float64)
            assert contrast(given, own, there, at).tolist() == pytest.approx([math.log(count)] * count, abs=1e-12)
            decoupled = contrast(given, own, there, at, DCL)
            assert decoupled.tolist() == pytest.approx([math.log(count - 1)] * count, abs=1e-12)
            several = contrast(given, own, there, at, weights=weights)
            assert several.tolist() == pytest.approx([math.log(count)] * count, abs=1e-11)


def test_decoupled_and_plain_are_one_number() -> None:
    """InfoNCE = log(1 + exp(DCL)), and its gradient is that of DCL times one less the share of the positive."""
    cosines, own, _ = drawn(5)
    there = torch.ones_like(cosines, dtype=torch.bool)
    given = (SCALE * cosines).requires_grad_()
    plain, decoupled = (contrast(given, own, there, SCALE, rule) for rule in (INFO_NCE, DCL))
    assert plain.tolist() == pytest.approx([math.log1p(math.exp(x)) for x in decoupled.tolist()], abs=1e-14)
    of_plain, of_decoupled = (torch.autograd.grad(loss.sum(), given)[0] for loss in (plain, decoupled))
    share = given.softmax(dim=1)
    torch.testing.assert_close(of_plain, (1 - share[own, own])[:, None] * of_decoupled, atol=1e-14, rtol=0)
    target = torch.nn.functional.one_hot(own, 8)
    torch.testing.assert_close(of_plain, share.detach() - target, atol=1e-14, rtol=0)


def test_nothing_leaks_from_what_is_left_out() -> None:
    """At 100 times a cosine, a logit moved down by 103 is still there: the negatives come to -3.62, not -100."""
    cosines = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    scale = torch.tensor(100.0, dtype=torch.float64)
    nearly = scale * cosines + math.log(1e-45) * torch.eye(2)
    assert nearly.logsumexp(1).tolist() == pytest.approx([-3.62] * 2, abs=0.01)
    whole = torch.ones(2, 2, dtype=torch.bool)
    losses = contrast(scale * cosines, torch.arange(2), whole, scale, DCL)
    assert (losses + 100).tolist() == pytest.approx([-100.0] * 2)


def test_worked_numbers() -> None:
    cosines = torch.tensor([[0.8, 0.2], [0.1, 0.6]], dtype=torch.float64)
    scale, own, whole = torch.tensor(10.0, dtype=torch.float64), torch.arange(2), torch.ones(2, 2, dtype=torch.bool)
    first = contrast(scale * cosines, own, whole, scale).mean()
    second = contrast(scale * cosines.T, own, whole, scale).mean()
    assert first.item() == pytest.approx(0.0045955168, abs=1e-10)
    assert second.item() == pytest.approx(0.0095306972, abs=1e-10)
    assert contrast(scale * cosines, own, whole, scale, DCL).mean().item() == pytest.approx(-5.5)


def test_continuous_weights() -> None:
    """The identity is InfoNCE; a factor changes nothing; the least there is is the entropy of the weights."""
    cosines, own, _ = drawn(6)
    cosines, there = cosines[:, :5], torch.ones(5, 5, dtype=torch.bool)
    plain = contrast(SCALE * cosines, own, there, SCALE)
    identity = torch.eye(5, dtype=torch.float64)
    assert contrast(SCALE * cosines, own, there, SCALE, weights=identity).tolist() == pytest.approx(plain.tolist())
    weights = torch.rand(5, 5, dtype=torch.float64)
    once, thrice = (contrast(SCALE * cosines, own, there, SCALE, weights=n * weights) for n in (1, 3))
    assert once.tolist() == pytest.approx(thrice.tolist(), abs=1e-14)
    expected = []
    for line, weight in zip((SCALE * cosines).tolist(), weights.tolist(), strict=True):
        total = math.log(sum(map(math.exp, line)))
        expected.append(sum(w * (total - s) for w, s in zip(weight, line, strict=True)) / sum(weight))
    assert once.tolist() == pytest.approx(expected, abs=1e-13)
    shares = weights / weights.sum(dim=1, keepdim=True)
    least = contrast(shares.log(), own, there, SCALE, weights=weights)
    assert least.tolist() == pytest.approx((-(shares * shares.log()).sum(dim=1)).tolist(), abs=1e-13)
    assert (once > least).all()
    given = cosines.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda c: contrast(SCALE * c, own, there, SCALE, weights=weights), (given,))


def test_weights_of_negatives_at_their_ends() -> None:
    """With nothing owed: beta 0 is InfoNCE, and a large one leaves of the negatives N - 1 times the hardest."""
    cosines, own, counts = drawn(7)
    plain = contrast(SCALE * cosines, own, counts, SCALE)
    assert contrast(SCALE * cosines, own, counts, SCALE, Rule(beta=0.0)).tolist() == plain.tolist()
    hardest = contrast(SCALE * cosines, own, counts, SCALE, Rule(beta=1e5))
    for n in range(1, 5):
        others = [j for j in range(8) if counts[n, j] and j != n]
        gap = SCALE.item() * (max(cosines[n, j].item() for j in others) - cosines[n, n].item())
        assert hardest[n].item() == pytest.approx(math.log1p(len(others) * math.exp(gap)), rel=1e-9)


def test_the_gradient_of_hardened_negatives_has_the_hardened_shares() -> None:
    """alpha (softmax(S + a s off the diagonal) - I): what is added has no gradient of its own."""
    cosines, own, _ = drawn(8)
    cosines = cosines[:, :5].requires_grad_()
    whole = torch.ones(5, 5, dtype=torch.bool)
    loss = contrast(SCALE * cosines, own, whole, SCALE, Rule(hardness=3.0)).sum()
    (got,) = torch.autograd.grad(loss, cosines)
    apart = 1 - torch.eye(5, dtype=torch.float64)
    shares = (SCALE * cosines + 3.0 * cosines * apart).detach().softmax(dim=1)
    torch.testing.assert_close(got, SCALE * (shares - torch.eye(5)), atol=1e-13, rtol=0)


@pytest.mark.parametrize("weights", [None, torch.rand(5, 8, dtype=torch.float64)])
def test_the_gradient_of_the_scale(weights: torch.Tensor | None) -> None:
    """With respect to its logarithm it is the sum of (share - target) S."""
    cosines, own, _ = drawn(9)
    log_scale, whole = SCALE.log().requires_grad_(), torch.ones(5, 8, dtype=torch.bool)
    losses = contrast(log_scale.exp() * cosines, own, whole, log_scale.exp(), weights=weights)
    (got,) = torch.autograd.grad(losses.sum(), log_scale)
    given = SCALE * cosines
    one_hot = torch.nn.functional.one_hot(own, 8).double()
    target = one_hot if weights is None else weights / weights.sum(dim=1, keepdim=True)
    assert got.item() == pytest.approx(((given.softmax(1) - target) * given).sum().item(), abs=1e-12)


def test_invariances() -> None:
    """A constant per anchor changes no softmax loss; permuted anchors and keys permute the losses."""
    cosines, own, counts = drawn(10)
    shift, order = torch.randn(5, 1, dtype=torch.float64), torch.tensor([3, 1, 4, 0, 2])
    columns = torch.cat([order, torch.tensor([7, 5, 6])])
    for rule in (INFO_NCE, DCL, Rule(beta=1.0), Rule(hardest=2)):
        before = contrast(SCALE * cosines, own, counts, SCALE, rule)
        after = contrast(SCALE * cosines + shift, own, counts, SCALE, rule)
        torch.testing.assert_close(after, before, atol=1e-13, rtol=0)
        moved = contrast(SCALE * cosines[order][:, columns], own, counts[order][:, columns], SCALE, rule)
        torch.testing.assert_close(moved, before[order], atol=1e-13, rtol=0)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_extreme_similarities_are_numbers(rule: Rule) -> None:
    """In float32 at 100 times a cosine, forward and backward; a batch of one row too."""
    for count in (1, 2, 6):
        cosines = torch.where(torch.rand(count, count) < 0.5, 1.0, -1.0).requires_grad_()
        scale = torch.tensor(100.0, requires_grad=True)
        counts = torch.ones(count, count, dtype=torch.bool)
        losses = contrast(scale * cosines, torch.arange(count), counts, scale, rule)
        losses.sum().backward()
        assert cosines.grad is not None
        for value in (losses, cosines.grad, scale.grad):
            assert torch.isfinite(value).all()


def test_what_filters_leave() -> None:
    cosines = torch.tensor([[0.5, 0.59, 0.61, 0.2, 0.4, -0.3]], dtype=torch.float64)
    negative = torch.tensor([[False, True, True, True, True, True]])
    right, one = cosines[:, 0], torch.tensor(1.0, dtype=torch.float64)
    near = kept_negatives(cosines, right, negative, one, Rule(margin=0.1))
    assert near.tolist() == [[False, True, False, True, True, True]]
    few = kept_negatives(cosines, right, negative, one, Rule(margin=0.1, hardest=2))
    assert few.tolist() == [[False, True, False, False, True, False]]
    certain = cosines == 0.61
    sure = kept_negatives(cosines, right, negative, one, Rule(margin=0.1, hardest=2), certain)
    assert sure.tolist() == [[False, True, True, False, False, False]]
    every = kept_negatives(cosines, right, negative, one, Rule(hardest=100))
    assert every.tolist() == negative.tolist()
    # The margin is one of cosines, whatever they are multiplied by.
    assert kept_negatives(7 * cosines, 7 * right, negative, 7 * one, Rule(margin=0.1)).tolist() == near.tolist()


def test_weights_of_positives() -> None:
    cosines = torch.tensor([0.9, 0.1, -0.5, 0.3], dtype=torch.float64)
    there = torch.tensor([True, True, False, True])
    found = positive_weights(cosines, there, 0.5)
    mean = sum(math.exp(c / 0.5) for c in (0.9, 0.1, 0.3)) / 3
    for n in (0, 1, 3):
        assert found[n].item() == pytest.approx(2 - math.exp(cosines[n].item() / 0.5) / mean, abs=1e-14)
    assert found[there].sum().item() == pytest.approx(3)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"beta": -1}, "X: rule: beta must be a number of at least 0, got -1"),
        ({"margin": math.nan}, "X: rule: margin must be a number of at least 0, got nan"),
        ({"tau_plus": 1}, "X: rule: tau_plus is a share and must be below 1, got 1"),
        ({"sigma": 0.0}, "X: rule: sigma must be above 0"),
        ({"hardness_on": "some"}, "X: rule: hardness_on must be one of in_batch, explicit, all, got 'some'"),
        ({"hardest": 0}, "X: rule: hardest must be a whole number above 0, or nothing for all, got 0"),
        ({"hardest": True}, "hardest must be a whole number above 0"),
        ({"betta": 1}, r"X: rule has no 'betta' \(positive_weight, beta"),
        ("dcl", "X: rule must be a mapping of positive_weight, .*, got 'dcl'"),
    ],
)
def test_mistakes_are_named(given: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        options_from(Rule, given, "rule", "X")


def test_options_are_a_rule_or_a_mapping() -> None:
    assert options_from(Rule, {"beta": 1.0}, "rule", "X") == Rule(beta=1.0)
    assert options_from(Rule, DCL, "rule", "X") is DCL
