"""The kernels against loops in float64, and their gradients against differences."""

from __future__ import annotations

import math

import pytest
import torch

from mllm_align.objectives.contrast_kernels import continuous_weights, sigmoid_contrast, softmax_contrast, takes_part

SHAPE = (5, 7)


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Similarities, weights and negatives; one anchor lacks positives, one negatives, one has a lone negative that is
    its positive."""
    generator = torch.Generator().manual_seed(seed)
    similarities = 3 * torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    weight = torch.rand(SHAPE, generator=generator, dtype=torch.float64) * (
        torch.rand(SHAPE, generator=generator) < 0.4
    )
    negative = torch.rand(SHAPE, generator=generator) < 0.6
    weight[0] = 0
    negative[1] = False
    weight[2], negative[2] = 0, False
    weight[2, 3], negative[2, 3] = 1.0, True
    weight[3, 0], negative[3, :2] = 0.5, True
    weight[4, :2], negative[4, 2:4] = 0.7, True
    return similarities, weight, negative


def by_loop(similarities: torch.Tensor, weight: torch.Tensor, negative: torch.Tensor, decoupled: bool) -> list[float]:
    found = []
    for i in range(len(similarities)):
        positives = [j for j in range(similarities.shape[1]) if weight[i, j] > 0]
        negatives = [j for j in range(similarities.shape[1]) if negative[i, j]]
        if not positives or not any(j != positives[0] or len(positives) > 1 for j in negatives):
            found.append(0.0)
            continue
        total = 0.0
        for p in positives:
            below = set(negatives) if decoupled else {p, *negatives}
            z = sum(math.exp(similarities[i, j]) for j in below)
            total += float(weight[i, p]) * (math.log(z) - float(similarities[i, p]))
        found.append(total / sum(float(weight[i, p]) for p in positives))
    return found


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_softmax_is_the_loop(seed: int, decoupled: bool) -> None:
    similarities, weight, negative = drawn(seed)
    found = softmax_contrast(similarities, weight, negative, decoupled=decoupled)
    assert found.tolist() == pytest.approx(by_loop(similarities, weight, negative, decoupled), abs=1e-10)
    assert found[:3].tolist() == [0, 0, 0]
    assert takes_part(weight, negative).tolist()[:3] == [False] * 3
    assert takes_part(weight, negative).tolist()[3:] == [True, True]


def test_one_positive_is_cross_entropy_and_decoupled_lies_below() -> None:
    similarities = drawn()[0][:, :5]
    own = torch.eye(5, dtype=torch.bool)
    plain = softmax_contrast(similarities, own, ~own)
    expected = torch.nn.functional.cross_entropy(similarities, torch.arange(5), reduction="none")
    torch.testing.assert_close(plain, expected)
    below = softmax_contrast(similarities, own, ~own, decoupled=True)
    # Z without the positive: log(1 - its probability) less.
    torch.testing.assert_close(below, plain + torch.log1p(-torch.exp(-plain)))


def test_all_keys_as_negatives_are_a_soft_target_cross_entropy() -> None:
    """CWCL: every key is in the denominator, and weights tell how much of a positive it is."""
    similarities = drawn()[0][:, :5]
    own = torch.randn(5, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    keys = own.clone().requires_grad_(True)
    weight = continuous_weights(keys)
    assert not weight.requires_grad
    for i in range(5):
        for j in range(5):
            cosine = float(own[i] @ own[j] / own[i].norm() / own[j].norm())
            assert weight[i, j].item() == pytest.approx(cosine / 2 + 0.5)
    target = weight / weight.sum(dim=1, keepdim=True)
    found = softmax_contrast(similarities, weight, torch.ones(5, 5, dtype=torch.bool))
    torch.testing.assert_close(found, -(target * similarities.log_softmax(dim=1)).sum(dim=1))


def test_sigmoid_is_the_loop() -> None:
    logits, weight, negative = drawn()
    positive, negative = weight > 0, negative & ~(weight > 0)
    expected = []
    for i in range(len(logits)):
        positives = [j for j in range(SHAPE[1]) if positive[i, j]]
        negatives = [j for j in range(SHAPE[1]) if negative[i, j]]
        own = sum(math.log(1 + math.exp(-logits[i, j])) / len(positives) for j in positives)
        others = sum(0.3 * math.log(1 + math.exp(logits[i, j])) for j in negatives)
        expected.append(float(own + others) if positives else 0.0)
    assert sigmoid_contrast(logits, positive, negative, 0.3).tolist() == pytest.approx(expected)
    assert expected[0] == 0 < expected[1]


@pytest.mark.parametrize("decoupled", [False, True])
def test_gradients(decoupled: bool) -> None:
    similarities, weight, negative = drawn()
    similarities.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda s: softmax_contrast(s, weight, negative, decoupled=decoupled), similarities)
    positive = weight > 0
    assert torch.autograd.gradcheck(lambda s: sigmoid_contrast(s, positive, negative & ~positive, 0.3), similarities)


def test_extremes_stay_finite() -> None:
    similarities = torch.tensor([[100.0, -100.0, 0.0]] * 2, requires_grad=True)
    own, others = torch.tensor([[False, True, False]] * 2), torch.tensor([[True, False, True], [False] * 3])
    for decoupled in (False, True):
        losses = softmax_contrast(similarities, own, others, decoupled=decoupled)
        assert losses.tolist() == [200, 0]
        (gradient,) = torch.autograd.grad(losses.sum(), similarities)
        assert gradient.isfinite().all()
        assert not gradient[1].any()
