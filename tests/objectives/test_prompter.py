"""The head against its formula for one phrase at a time; padding changes nothing."""

from __future__ import annotations

import math

import torch

from mllm_align.objectives.prompter import Prompter


def one_box(head: Prompter, phrase: torch.Tensor, tokens: torch.Tensor, cosines: list[float]) -> torch.Tensor:
    """Attention of one phrase over some tokens, one after the other."""
    shares = [math.exp(10 * cosine) for cosine in cosines]
    found = sum(share / sum(shares) * head.token(token) for share, token in zip(shares, tokens, strict=True))
    return torch.sigmoid(head.box(head.phrase(phrase) + head.join(found)))


def test_it_is_attention_within_each_image() -> None:
    torch.manual_seed(0)
    head = Prompter(5, 6, width=8).double()
    phrases, tokens = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 4, 6, dtype=torch.float64)
    cosines = torch.rand(2, 3, 4, dtype=torch.float64) * 2 - 1
    there = torch.tensor([[True] * 4, [True, True, False, False]])
    cosines[1, :, 2:] = 1.0
    with torch.no_grad():
        boxes = head(phrases, tokens, cosines, there)
        assert boxes.shape == (2, 3, 4)
        for image in range(2):
            for number in range(3):
                own = cosines[image, number, there[image]].tolist()
                expected = one_box(head, phrases[image, number], tokens[image, there[image]], own)
                torch.testing.assert_close(boxes[image, number], expected)


def test_gradients_reach_phrases_tokens_and_cosines() -> None:
    torch.manual_seed(0)
    head = Prompter(3, 3, width=4).double()
    there = torch.tensor([[True, True, False]])
    shapes = ((1, 2, 3), (1, 3, 3), (1, 2, 3))
    given = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(lambda p, t, c: head(p, t, c, there), given)
    of_tokens, of_cosines = torch.autograd.grad(head(*given, there).sum(), given[1:])
    assert not of_tokens[0, 2].any()
    assert not of_cosines[0, :, 2].any()
    assert of_tokens[0, :2].any()
    assert of_cosines[0, :, :2].any()


def test_the_scale_stays_in_its_bounds() -> None:
    head = Prompter(3, 3, width=4)
    with torch.no_grad():
        head.log_scale += 5
    there = torch.ones(1, 2, dtype=torch.bool)
    head(torch.randn(1, 1, 3), torch.randn(1, 2, 3), torch.randn(1, 1, 2), there).sum().backward()
    assert abs(head.log_scale.exp().item() - 100) < 1e-3
    assert head.log_scale.grad is not None
