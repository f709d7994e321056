"""The head against its formula for one phrase at a time; padding changes nothing."""

from __future__ import annotations

import math

import torch

from mllm_align.objectives.prompter import Prompter


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(one @ other) / math.sqrt(float(one @ one)) / math.sqrt(float(other @ other))


def one_box(head: Prompter, phrase: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Attention of one phrase over some tokens, head by head."""
    query, projected = head.query(phrase), head.tokens(tokens)
    width = len(query)
    part = width // head.heads
    found = []
    for number in range(head.heads):
        own = slice(number * part, (number + 1) * part)
        keys, values = projected[:, :width][:, own], projected[:, width:][:, own]
        scores = [10 * cosine(query[own], key) for key in keys]
        total = sum(math.exp(score) for score in scores)
        found.append(sum(math.exp(s) / total * value for s, value in zip(scores, values, strict=True)))
    return torch.sigmoid(head.box(query + head.join(torch.cat(found))))


def test_it_is_attention_within_each_image() -> None:
    torch.manual_seed(0)
    head = Prompter(5, 6, width=8, heads=2).double()
    phrases, tokens = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 4, 6, dtype=torch.float64)
    there = torch.tensor([[True] * 4, [True, True, False, False]])
    tokens[1, 2:] = 100.0
    with torch.no_grad():
        boxes = head(phrases, tokens, there)
        assert boxes.shape == (2, 3, 4)
        for image in range(2):
            for number in range(3):
                expected = one_box(head, phrases[image, number], tokens[image, there[image]])
                torch.testing.assert_close(boxes[image, number], expected)


def test_gradients_reach_phrases_and_tokens() -> None:
    torch.manual_seed(0)
    head = Prompter(3, 3, width=4, heads=2).double()
    there = torch.tensor([[True, True, False]])
    given = [torch.randn(1, n, 3, dtype=torch.float64, requires_grad=True) for n in (2, 3)]
    assert torch.autograd.gradcheck(lambda p, t: head(p, t, there), given)
    gradient = torch.autograd.grad(head(*given, there).sum(), given[1])[0]
    assert not gradient[0, 2].any()
    assert gradient[0, :2].any()


def test_the_scale_stays_in_its_bounds() -> None:
    head = Prompter(3, 3, width=4, heads=2)
    with torch.no_grad():
        head.log_scale += 5
    head(torch.randn(1, 1, 3), torch.randn(1, 2, 3), torch.ones(1, 2, dtype=torch.bool)).sum().backward()
    assert abs(head.log_scale.exp().item() - 100) < 1e-3
    assert head.log_scale.grad is not None
