"""A head that finds the box of a phrase among the tokens of an image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of the cosines, at the start and at the most.
SCALE, MAX_SCALE = 10.0, 100.0


class Prompter(nn.Module):
    """One layer of attention of a phrase over image tokens, then a box.

    Where a token lies it tells itself, by what the tower's positions left in it. Attention goes by cosines with a
    learned scale: by plain dot products it stays spread over all tokens, and every phrase gets the mean box.

    Args:
        phrase_width: Width of a phrase.
        token_width: Width of an image token.
        width: Inside.
        heads: Of the attention; `width` is a multiple of it.
    """

    def __init__(self, phrase_width: int, token_width: int, width: int = 256, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))
        self.query = nn.Sequential(nn.LayerNorm(phrase_width), nn.Linear(phrase_width, width))
        self.tokens = nn.Sequential(nn.LayerNorm(token_width), nn.Linear(token_width, 2 * width))
        self.join = nn.Linear(width, width)
        self.box = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 4))

    def forward(self, phrases: Tensor, tokens: Tensor, there: Tensor) -> Tensor:
        """The boxes of phrases, each on its own image.

        Args:
            phrases: (R, q, d) phrases of each of R images, padded.
            tokens: (R, n, e) tokens of each image, padded.
            there: (R, n) bool, which are no padding.

        Returns:
            (R, q, 4) centre, width and height as shares of the image, each from 0 to 1.
        """
        dtype = self.join.weight.dtype
        query = self.query(phrases.to(dtype))
        keys, values = self.tokens(tokens.to(dtype)).chunk(2, dim=-1)
        asked, known, said = (self._split(each) for each in (query, keys, values))
        with torch.no_grad():
            # The parameter itself: a clamped output has no gradient, and the scale could never fall again.
            self.log_scale.clamp_(max=math.log(MAX_SCALE))
        scale = self.log_scale.exp()
        asked, known = scale * F.normalize(asked, dim=-1), F.normalize(known, dim=-1)
        found = F.scaled_dot_product_attention(asked, known, said, attn_mask=there[:, None, None, :], scale=1.0)
        joined = query + self.join(found.transpose(1, 2).flatten(2))
        return self.box(joined).sigmoid()

    def _split(self, values: Tensor) -> Tensor:
        """(R, heads, n, width / heads)."""
        return values.unflatten(-1, (self.heads, -1)).transpose(1, 2)
