"""What makes an embedding of an image or a text after training, as an objective has trained it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mllm_align.contract.needs import Feature

# Instructions that embeddings are read behind unless others are given. Of VladVA no wording is public; these say what
# its family of prompts says.
IMAGE_PROMPT = "Summarize the image above in one word:"
TEXT_PROMPT = "Summarize the sentence above in one word:"


class EmbeddingHead(nn.Module):
    """From what is measured of one side to its vector: learned-query pooling of tokens, a projection, or both.

    The pooling is that of COSMO (Wang et al., 2024), https://arxiv.org/abs/2401.00849: attention of one learned query
    over the tokens, a feed-forward layer and a layer norm; its projection is linear without bias, as CLIP's.

    Args:
        width: Of the states that are given.
        dim: Width of the vector; None to leave it at `width`.
        query: Whether tokens are given and pooled.
        num_heads: Of the attention.

    Raises:
        ValueError: If the head would do nothing, or `num_heads` does not divide `width`.
    """

    def __init__(self, width: int, dim: int | None = None, query: bool = False, num_heads: int = 4) -> None:
        super().__init__()
        if dim is None and not query:
            raise ValueError("a head without query and dim does nothing: leave it out")
        if query and width % num_heads:
            raise ValueError(f"a width of {width} cannot be split among {num_heads} heads: set num_heads")
        self.options = {"width": width, "dim": dim, "query": query, "num_heads": num_heads}
        self.query = nn.Parameter(torch.randn(1, 1, width) * width**-0.5) if query else None
        if query:
            self.norm = nn.LayerNorm(width)
            self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
            self.feed_forward = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )
            self.last_norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, dim, bias=False) if dim is not None else None

    def forward(self, values: Tensor, there: Tensor | None = None) -> Tensor:
        """The vectors of some entries.

        Args:
            values: (N, width), or with a query (N, T, width) tokens, padded.
            there: (N, T) bool, which tokens are no padding.

        Returns:
            (N, dim or width), in the precision of the weights.
        """
        values = values.to(next(self.parameters()).dtype)
        with torch.autocast(values.device.type, enabled=False):
            if self.query is not None:
                tokens = self.norm(values)
                hidden = None if there is None else ~there
                found, _ = self.attention(
                    self.query.expand(len(values), -1, -1), tokens, tokens, key_padding_mask=hidden, need_weights=False
                )
                pooled = found[:, 0]
                values = self.last_norm(pooled + self.feed_forward(pooled))
            return values if self.projection is None else self.projection(values)


@dataclass(frozen=True)
class Embedding:
    """What an objective that is a module may name in an attribute `embedding`: it is saved beside the model's weights.

    Attributes:
        features: Of side "image" and of side "text" what is measured; its column is where training found it.
        heads: Of a side what brings its feature to its vector; none where that is the feature itself.
        dimensions: How many leading dimensions are embeddings by themselves, ascending; none where only all are.
    """

    features: Mapping[str, Feature]
    heads: Mapping[str, EmbeddingHead]
    dimensions: tuple[int, ...] = ()
