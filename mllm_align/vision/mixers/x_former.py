"""X-Former: queries that read a CLIP-like encoder, taught detail by a masked autoencoder in two cross-attentions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mllm_align.vision.mixers.base import Cells, Mixer, Sight, Widths
from mllm_align.vision.mixers.options import whole
from mllm_align.vision.mixers.parts import length
from mllm_align.vision.mixers.q_former import Attention, QFormer, start


class CrossBlock(nn.Module):
    """A sequence reads another: cross-attention and a feed-forward part, each with normalisation before and residual.

    Args:
        width: Of the sequence that asks, and of the result.
        source: Width of the one that is read.
        heads: Of the attention; must divide `inner`.
        inner: Width of the attention.
    """

    def __init__(self, width: int, source: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm, self.source_norm = nn.LayerNorm(width), nn.LayerNorm(source)
        self.attention = Attention(width, source, heads, inner)
        self.feedforward_norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """(B, T, width) of x (B, T, width) and a source (B, S, source width)."""
        x = x + self.attention(self.norm(x), self.source_norm(source))
        return x + self.down(F.gelu(self.up(self.feedforward_norm(x))))


class DualCrossAttention(nn.Module):
    """First the autoencoder's features M read the queries Z_q, giving M'; then the queries read M', giving Z'.

    Args:
        queries: Width of Z_q and Z'.
        detail: Width of M and M'.
        heads: Of both attentions.
    """

    def __init__(self, queries: int, detail: int, heads: int) -> None:
        super().__init__()
        self.to_detail = CrossBlock(detail, queries, heads, queries)
        self.to_queries = CrossBlock(queries, detail, heads, queries)

    def enrich(self, detail: Tensor, queries: Tensor) -> Tensor:
        """M' (B, N, detail width) of M (B, N, detail width) and Z_q (B, Q, width): semantics into detail."""
        return self.to_detail(detail, queries)

    def refine(self, queries: Tensor, enriched: Tensor) -> Tensor:
        """Z' (B, Q, width) of Z_q (B, Q, width) and M' (B, N, detail width): detail into the queries."""
        return self.to_queries(queries, enriched)

    def forward(self, queries: Tensor, detail: Tensor) -> Tensor:
        """Z' (B, Q, width) of Z_q (B, Q, width) and M (B, N, detail width)."""
        return self.refine(queries, self.enrich(detail, queries))


class XFormer(Mixer):
    """X-Former (Swetha et al. 2024, arXiv:2407.13851): what the language model reads are refined queries.

    A Q-Former's queries read the model's own, CLIP-like features (Z_q); features M of one further encoder, a masked
    autoencoder (MAE), read Z_q (M'); the queries read M' (Z'); a linear layer takes Z' to the language model's width.
    The result takes the place of the projector's tokens, whatever their number. It is meant to be trained first by
    itself (`mllm-align x-former`), without which the queries mean nothing to the language model.

    From the paper: the two cross-attentions with their queries, keys and values, the linear layer behind, the Q-Former
    of BLIP-2. No code was published, and we could not verify the rest, which we chose: 32 queries and BERT's size as
    in BLIP-2; one block per cross-attention with its normalisation before and a residual, so that M' begins near M,
    which is what the autoencoder's frozen decoder can read in stage 1; the class token of the autoencoder is not read
    by the queries.

    Switched off, the further encoder's place stays empty: Z_q alone goes through the linear layer.

    Args:
        widths: Of exactly one further encoder.
        num_queries: Tokens per view that the language model reads.
        width: Of the queries.
        depth: Layers of the Q-Former.
        heads: Of every attention; must divide `width`.
        cross_every: Every how many layers of the Q-Former the own features are read.
        detail_cells: Rows and columns in which the further encoder is to be read; those of the tokens by default.
        encoder_dropout: See `Mixer`.

    Raises:
        ValueError: For another number of further encoders than one, or heads that do not divide the width.
    """

    place = "output"
    replaces, on_grid = True, False
    starts_as_identity = False

    def __init__(
        self,
        widths: Widths,
        *,
        num_queries: int = 32,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        cross_every: int = 2,
        detail_cells: Sequence[int] | None = None,
        encoder_dropout: float = 0.0,
    ) -> None:
        shape: dict[str, Any] = {"num_queries": num_queries, "width": width, "depth": depth, "heads": heads}
        for name, value in {**shape, "cross_every": cross_every}.items():
            whole(name, value)
        if detail_cells is not None and len(detail_cells) != 2:
            raise ValueError(f"detail_cells must be rows and columns, not {detail_cells!r}")
        cells = None if detail_cells is None else [whole("detail_cells", each) for each in detail_cells]
        super().__init__(widths, encoder_dropout=encoder_dropout, **shape, cross_every=cross_every, detail_cells=cells)
        if len(widths.extra) != 1:
            raise ValueError(
                f"x_former joins exactly one further encoder (a masked autoencoder), not {len(widths.extra)}"
            )
        self.detail_cells: Cells | None = None if cells is None else (cells[0], cells[1])
        self.q_former = QFormer(widths.base, **shape, cross_every=cross_every)
        self.dual = DualCrossAttention(width, widths.extra[0], heads)
        self.to_language = nn.Linear(width, widths.language)
        for part in (self.dual, self.to_language):
            start(part, width)

    def wants(self, cells: Cells) -> Sequence[Cells]:
        """One grid: the one that it was trained with, else that of the tokens."""
        return [self.detail_cells or cells]

    def num_tokens(self, cells: Cells) -> int:
        """The number of queries, whatever the grid."""
        return self.q_former.queries.shape[0]

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        """(V, Q, H), in the type of x, of what is seen; the values of x (V, N, H) are not used."""
        queries, _ = self.q_former(self.own(sight.base.values))
        for each in self.seen(x, sight):
            added = (self.dual(queries, each.values) - queries) * each.weight
            if self.watched is not None:
                self.watched["added/1"] = length(added) / length(queries)
            queries = queries + added
        return self.to_language(queries).to(x.dtype)
