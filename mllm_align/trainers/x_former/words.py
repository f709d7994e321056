"""The words' side of the Q-Former, which only the first stage has: embeddings, feed-forward parts and heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm_align.vision.mixers.q_former import FeedForward, start

# Tokens of our own behind the tokenizer's: how a text begins that is compared or matched, and one that is generated;
# and how a text ends.
OWN_TOKENS = 3
TEMPERATURE = 0.07


class Words(nn.Module):
    """What BLIP-2's Q-Former has beside the queries' path.

    Args:
        vocabulary: Of the tokenizer.
        width: Of the Q-Former.
        depth: Layers of the Q-Former.
        max_length: Tokens of a text at the most, without those of our own.
        shared: Width of the space in which images and texts are compared.
    """

    def __init__(self, vocabulary: int, width: int, depth: int, max_length: int = 32, shared: int = 256) -> None:
        super().__init__()
        self.vocabulary, self.max_length = vocabulary, max_length
        self.embedding = nn.Embedding(vocabulary + OWN_TOKENS, width)
        self.position = nn.Embedding(max_length + 2, width)
        self.norm = nn.LayerNorm(width, 1e-12)
        self.feedforwards = nn.ModuleList(FeedForward(width, 4 * width) for _ in range(depth))
        self.to_shared, self.queries_to_shared = nn.Linear(width, shared), nn.Linear(width, shared)
        self.temperature = nn.Parameter(torch.tensor(TEMPERATURE))
        self.match = nn.Linear(width, 2)
        self.dense, self.dense_norm = nn.Linear(width, width), nn.LayerNorm(width, 1e-12)
        self.bias = nn.Parameter(torch.zeros(vocabulary + OWN_TOKENS))
        start(self, width)

    @property
    def compare_token(self) -> int:
        """How a text begins whose first state stands for it."""
        return self.vocabulary

    @property
    def generate_token(self) -> int:
        """How a text begins that is generated."""
        return self.vocabulary + 1

    @property
    def end_token(self) -> int:
        """How a text ends."""
        return self.vocabulary + 2

    def embed(self, tokens: Tensor, first: int) -> Tensor:
        """(B, L, width) of tokens (B, L), the first of which is replaced by `first`."""
        tokens = torch.cat([torch.full_like(tokens[:, :1], first), tokens[:, 1:]], dim=1)
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.norm(self.embedding(tokens) + self.position(places))

    def next_logits(self, states: Tensor) -> Tensor:
        """(..., V) of the next token, by BERT's head, whose last layer shares the embedding's weights."""
        return F.linear(self.dense_norm(F.gelu(self.dense(states))), self.embedding.weight, self.bias)

    def scale(self) -> Tensor:
        """The temperature, kept within 0.001 to 0.5 as ALBEF and BLIP do."""
        return self.temperature.clamp(0.001, 0.5)
