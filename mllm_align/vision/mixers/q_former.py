"""The Q-Former of BLIP-2: learned queries that read an image, and may share their attention with words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BERT_WIDTH, BERT_STD = 768, 0.02


class Attention(nn.Module):
    """Multi-head attention from one sequence to another (or to itself).

    Args:
        width: Of the sequence that asks, and of the result.
        source: Width of the sequence that is read.
        inner: Width of all heads together; by default `width`.
        heads: How many; must divide `inner`.

    Raises:
        ValueError: If the heads do not divide the inner width.
    """

    def __init__(self, width: int, source: int, heads: int, inner: int | None = None) -> None:
        super().__init__()
        inner = inner or width
        if inner % heads:
            raise ValueError(f"{heads} heads do not divide the width {inner}")
        self.heads = heads
        self.query, self.key, self.value = nn.Linear(width, inner), nn.Linear(source, inner), nn.Linear(source, inner)
        self.output = nn.Linear(inner, width)

    def forward(self, x: Tensor, source: Tensor, visible: Tensor | None = None) -> Tensor:
        """(B, T, width) of x (B, T, width) and a source (B, S, source width).

        Args:
            x: What asks.
            source: What is read.
            visible: (B, T, S) bool, True where a token may see another; all may by default.
        """
        parts = (self.query(x), self.key(source), self.value(source))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mask = None if visible is None else visible.unsqueeze(1)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.output(found.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with a GELU; BERT's with its residual and the normalisation after it."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(width, inner), nn.Linear(inner, width), nn.LayerNorm(width, 1e-12)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        return self.norm(x + self.down(F.gelu(self.up(x))))


class QFormerLayer(nn.Module):
    """One layer: attention of all tokens, of the queries to the image (in some layers), a feed-forward part.

    Words go through the same attention but a feed-forward part of their own, which is not held here.

    Args:
        width: Of queries and words.
        base: Of the image's features; None for a layer that does not read them.
        heads: Of the attention.
        inner: Of the feed-forward part.
    """

    def __init__(self, width: int, base: int | None, heads: int, inner: int) -> None:
        super().__init__()
        self.attention, self.norm = Attention(width, width, heads), nn.LayerNorm(width, 1e-12)
        self.cross = Attention(width, base, heads) if base else None
        self.cross_norm = nn.LayerNorm(width, 1e-12) if base else None
        self.feedforward = FeedForward(width, inner)

    def forward(
        self, x: Tensor, base: Tensor, queries: int, visible: Tensor | None, words: nn.Module | None
    ) -> Tensor:
        """(B, T, width) to the same.

        Args:
            x: Queries, then words.
            base: (B, N, base width) of the image.
            queries: How many of the tokens are queries.
            visible: (B, T, T) bool.
            words: The words' feed-forward part, where there are words.
        """
        x = self.norm(x + self.attention(x, x, visible))
        asked, said = x[:, :queries], x[:, queries:]
        if self.cross is not None and self.cross_norm is not None:
            asked = self.cross_norm(asked + self.cross(asked, base))
        asked = self.feedforward(asked)
        return asked if words is None else torch.cat([asked, words(said)], dim=1)


class QFormer(nn.Module):
    """BLIP-2's Q-Former (Li et al. 2023, arXiv:2301.12597, section 3.1), without dropout.

    A BERT encoder whose first tokens are learned queries, which read the image's features in every `cross_every`-th
    layer, beginning with the first. The words' side (embeddings, feed-forward parts, heads) is handed in, since only
    the first stage of training has one.

    Args:
        base: Width of the image's features.
        num_queries: Learned queries.
        width: Of queries and words.
        depth: Layers.
        heads: Of each attention.
        cross_every: Every how many layers the image is read.
        inner: Width of the feed-forward parts; four times `width` by default.
    """

    def __init__(
        self,
        base: int,
        num_queries: int = 32,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        cross_every: int = 2,
        inner: int | None = None,
    ) -> None:
        super().__init__()
        inner = inner or 4 * width
        self.queries = nn.Parameter(torch.zeros(num_queries, width))
        self.norm, self.base_norm = nn.LayerNorm(width, 1e-12), nn.LayerNorm(base)
        self.layers = nn.ModuleList(
            QFormerLayer(width, None if number % cross_every else base, heads, inner) for number in range(depth)
        )
        start(self, width)
        nn.init.normal_(self.queries, std=BERT_STD)

    def forward(
        self,
        base: Tensor,
        words: Tensor | None = None,
        visible: Tensor | None = None,
        feedforwards: Sequence[nn.Module] | nn.ModuleList | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The queries (B, Q, width) and words (B, L, width) after the last layer.

        Args:
            base: (B, N, base width) of the image.
            words: (B, L, width) embedded; none by default.
            visible: (B, Q + L, Q + L) bool: which token (row) sees which (column), queries first.
            feedforwards: Of the words, one per layer.
        """
        base = self.base_norm(base)
        x = self.norm(self.queries).expand(len(base), -1, -1)
        count = x.shape[1]
        if words is not None:
            x = torch.cat([x, words], dim=1)
        for number, layer in enumerate(self.layers):
            x = layer(x, base, count, visible, None if feedforwards is None else feedforwards[number])
        return x[:, :count], x[:, count:]


def start(module: nn.Module, width: int) -> None:
    """BERT's start for every linear layer and embedding below: biases zero, weights normal of 0.02 at BERT's width.

    At another width so much more or less that products of queries and keys are as large: at an eighth of the width
    0.02 leaves attention uniform, and what is read of an image so faint that queries were never told apart.

    Args:
        module: Whose parts.
        width: Of the queries.
    """
    std = BERT_STD * (BERT_WIDTH / width) ** 0.5
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
