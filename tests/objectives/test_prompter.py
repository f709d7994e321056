"""Both heads against their formulas for one phrase, or one box, at a time; padding changes nothing."""

from __future__ import annotations

import math

import torch

from mllm_align.objectives.prompter import WAVES, BoxPrompter, Prompter, waves


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


def test_what_is_in_a_box_is_attention_from_its_corners() -> None:
    torch.manual_seed(0)
    head = BoxPrompter(6, width=8).double()
    boxes, tokens = torch.rand(2, 3, 4, dtype=torch.float64), torch.randn(2, 5, 6, dtype=torch.float64)
    there = torch.tensor([[True] * 5, [True, True, False, False, False]])
    padded = tokens.masked_fill(~there[..., None], 50.0)
    with torch.no_grad():
        found = head(boxes, padded, there)
        assert found.shape == (2, 3, 6)
        for image in range(2):
            own = tokens[image, there[image]]
            for number in range(3):
                angles = [math.pi * 2**k * side for side in boxes[image, number].tolist() for k in range(WAVES)]
                told = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)], dtype=torch.float64)
                query = head.corners(told)
                scores = [math.exp(float(query @ head.key(head.norm(token))) / math.sqrt(8)) for token in own]
                expected = sum(score / sum(scores) * token for score, token in zip(scores, own, strict=True))
                torch.testing.assert_close(found[image, number], expected)
    # Boxes that differ are told apart, on one image.
    assert not torch.allclose(found[0, 0], found[0, 1])


def test_waves_tell_sides_of_an_image_apart() -> None:
    """A box at the left edge from one at the right, and by a sixty-fourth of the image."""
    sides = torch.linspace(0, 1, 65, dtype=torch.float64)[:, None].expand(-1, 4)
    told = waves(sides)
    assert told.shape == (65, 8 * WAVES)
    assert torch.pdist(told).min() > 1


def test_gradients_reach_tokens_and_the_head_of_boxes() -> None:
    torch.manual_seed(0)
    head = BoxPrompter(3, width=4).double()
    there = torch.tensor([[True, True, False]])
    boxes = torch.rand(1, 2, 4, dtype=torch.float64)
    tokens = torch.randn(1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: head(boxes, given, there), (tokens,))
    found = head(boxes, tokens, there).square().sum()
    (of_tokens, *of_head) = torch.autograd.grad(found, (tokens, *head.parameters()))
    assert not of_tokens[0, 2].any()
    assert of_tokens[0, :2].any()
    assert len(of_head) == 8
    assert sum(bool(gradient.any()) for gradient in of_head) >= 7  # the softmax does not see the keys' common part
