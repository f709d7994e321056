"""A head that reads the box of a phrase from the tokens of an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mllm_align.objectives.temperature import bounded_scale, log_scale_of

# Of the cosines, at the start.
TEMPERATURE = 0.1


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
