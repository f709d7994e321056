"""Heads between boxes and the tokens of an image: the box of a phrase, and what is in a box."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mllm_align.objectives.temperature import bounded_scale, log_scale_of

# Of the cosines, at the start.
TEMPERATURE = 0.1
# Sines and cosines of a box's sides go from half a wave over the image up, each twice as fast as the one before.
WAVES = 6


class Prompter(nn.Module):
    """Attention of a phrase over image tokens by given cosines with a learned scale, then a box.

    Where a token lies it tells itself, by what the tower's positions left in it. Whose cosines they are is up to the
    caller: a query of its own would have to learn the same thing again, and until it has, every phrase gets the mean
    box.

    Args:
        phrase_width: Width of a phrase.
        token_width: Width of an image token.
        width: Inside.
    """

    def __init__(self, phrase_width: int, token_width: int, width: int = 256) -> None:
        super().__init__()
        self.log_scale = log_scale_of(TEMPERATURE, learn=True)
        self.phrase = nn.Sequential(nn.LayerNorm(phrase_width), nn.Linear(phrase_width, width))
        self.token = nn.Sequential(nn.LayerNorm(token_width), nn.Linear(token_width, width))
        self.join = nn.Linear(width, width)
        self.box = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 4))

    def forward(self, phrases: Tensor, tokens: Tensor, cosines: Tensor, there: Tensor) -> Tensor:
        """The boxes of phrases, each on its own image.

        Args:
            phrases: (R, q, d) phrases of each of R images, padded.
            tokens: (R, n, e) tokens of each image, padded.
            cosines: (R, q, n) of each phrase to each token of its image.
            there: (R, n) bool, which tokens are no padding.

        Returns:
            (R, q, 4) centre, width and height as shares of the image, each from 0 to 1.
        """
        dtype = self.join.weight.dtype
        scores = bounded_scale(self.log_scale) * cosines.to(dtype)
        weights = scores.masked_fill(~there[:, None, :], -torch.inf).softmax(dim=2)
        found = weights @ self.token(tokens.to(dtype))
        return self.box(self.phrase(phrases.to(dtype)) + self.join(found)).sigmoid()


class BoxPrompter(nn.Module):
    """What is in a box, by attention from its corners over all tokens of its image: one layer, one head.

    Tokens beside the box have a say, where the mean of what it covers gives them none. Keys are of the tokens alone;
    where a token lies it tells itself, by what the tower's positions left in it. What comes out is a mean of the
    tokens as they are, so that what compares with tokens compares with it, too.

    Args:
        token_width: Width of an image token.
        width: Inside.
    """

    def __init__(self, token_width: int, width: int = 256) -> None:
        super().__init__()
        self.corners = nn.Sequential(nn.Linear(8 * WAVES, width), nn.GELU(), nn.Linear(width, width))
        self.norm, self.key = nn.LayerNorm(token_width), nn.Linear(token_width, width)

    def forward(self, boxes: Tensor, tokens: Tensor, there: Tensor) -> Tensor:
        """The vectors of boxes, each on its own image.

        Args:
            boxes: (R, q, 4) left, top, right and bottom as shares of each of R images, padded.
            tokens: (R, n, e) tokens of each image, padded.
            there: (R, n) bool, which tokens are no padding.

        Returns:
            (R, q, e).
        """
        dtype = self.key.weight.dtype
        query = self.corners(waves(boxes.to(dtype)))
        keys = self.key(self.norm(tokens.to(dtype)))
        scores = query @ keys.transpose(1, 2) / math.sqrt(query.shape[-1])
        weights = scores.masked_fill(~there[:, None, :], -torch.inf).softmax(dim=2)
        return weights.to(tokens.dtype) @ tokens


def waves(boxes: Tensor) -> Tensor:
    """(..., 8 * WAVES): the sines, then the cosines, of pi, 2 pi, 4 pi, ... times each side of (..., 4) boxes."""
    speed = math.pi * 2.0 ** torch.arange(WAVES, dtype=boxes.dtype, device=boxes.device)
    angles = (boxes[..., None] * speed).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
