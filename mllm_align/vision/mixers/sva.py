"""A learned query for each cell, which looks at what every encoder has there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mllm_align.vision.mixers.along import TokenRows
from mllm_align.vision.mixers.base import Cells, Mixer, Sight, Widths
from mllm_align.vision.mixers.options import per_encoder, switch, whole
from mllm_align.vision.mixers.parts import Attention, Found, length, mlp
from mllm_align.vision.mixers.parts import windows as windows_of


class SpatialVisionAggregator(Mixer):
    """Spatial vision aggregator of Cambrian-1 (Tong et al., 2024), section 4, https://arxiv.org/abs/2406.16860

    Replaces the tokens behind the projector. Every encoder, the model's own as number 0, is projected to one width
    (Linear-GELU-Linear-LayerNorm). A learned query, the same in each cell, attends to the m x m window of each encoder
    that lies there, through `depth` layers; `groups` queries do so side by side, with layers of their own, and
    Linear-GELU-Linear makes a token of what all of them found.

    Args:
        windows: How many rows, and columns, of a further encoder's grid lie in one cell: one number, or one for each.
        base_window: The same of the model's own encoder: 1, or what its projector merges.
        width: Of queries and keys.
        heads: Of the attention.
        depth: Layers, D in the paper. Cambrian-1 has 3.
        groups: Queries for each cell, G in the paper. Cambrian-1 has 1.
        residual: Ours, not Cambrian's: what comes out is added to the tokens behind the projector, times the tanh of a
            gate that starts at zero, so that the model starts as it was. At the first step the gate alone has a
            gradient.
        llm_layers: How many layers lie between those of the language model: 0 for none. Cambrian-1 has 10 of them in
            its 8B and 13B models.
        llm_start: Number of the language model's layer, from 0, behind which the first of them lies.
        llm_stride: From there to the next. Cambrian-1 has 3 (8B) and 4 (13B).
        llm_zero_init: Ours, not Cambrian's: what they add is zero at first, so that they change nothing; at the first
            step only their last matrices have a gradient.
        encoder_dropout: See `Mixer`.

    Without `residual` nothing reads the model's own projector any more, so it has no gradient: freeze it.

    In a layer between those of the language model the queries are the states of the image tokens that lie in cells,
    the windows are the same as before (projected once), and what comes out takes the states' place. Newlines that the
    family has stay as they are. A token's windows go along with it into the language model: (1 + all positions of all
    windows) x `width` numbers, 24 MB for an image of 576 tokens in bfloat16 with the sizes of Cambrian-1.

    An encoder that is switched off has no keys. Newline tokens of its own at the end of rows, and masks of padding,
    both in Cambrian-1, are not here.
    """

    place = "output"

    def __init__(
        self,
        widths: Widths,
        *,
        windows: int | Sequence[int] = 1,
        base_window: int = 1,
        width: int = 1024,
        heads: int = 16,
        depth: int = 3,
        groups: int = 1,
        residual: bool = False,
        llm_layers: int = 0,
        llm_start: int = 0,
        llm_stride: int = 3,
        llm_zero_init: bool = True,
        encoder_dropout: float = 0.0,
    ) -> None:
        sides = [whole("windows", each) for each in per_encoder("windows", windows, len(widths.extra))]
        if whole("width", width) % whole("heads", heads):
            raise ValueError(f"width {width} cannot be split into {heads} heads")
        super().__init__(
            widths,
            encoder_dropout=encoder_dropout,
            windows=sides,
            base_window=whole("base_window", base_window),
            width=width,
            heads=heads,
            depth=whole("depth", depth),
            groups=whole("groups", groups),
            residual=switch("residual", residual),
            llm_layers=whole("llm_layers", llm_layers, 0),
            llm_start=whole("llm_start", llm_start, 0),
            llm_stride=whole("llm_stride", llm_stride),
            llm_zero_init=switch("llm_zero_init", llm_zero_init),
        )
        self.after = tuple(range(llm_start, llm_start + llm_layers * llm_stride, llm_stride))
        self.starts_as_identity = residual and (llm_zero_init or not llm_layers)
        self.replaces = not residual
        self.sides = [base_window, *sides]
        self.encoders = nn.ModuleList(
            nn.Sequential(*mlp(each, width, width), nn.LayerNorm(width)) for each in (widths.base, *widths.extra)
        )
        self.queries = nn.Parameter(torch.randn(groups, width) / math.sqrt(width))
        self.groups = nn.ModuleList(
            nn.ModuleList(AggregatorLayer(width, heads, self.sides) for _ in range(depth)) for _ in range(groups)
        )
        self.projector = mlp(width * groups, widths.language, widths.language)
        self.gate = nn.Parameter(torch.zeros(())) if residual else None
        self.inserted = nn.ModuleList(
            AggregatorLayer(width, heads, self.sides, widths.language, zero=llm_zero_init) for _ in self.after
        )
        self.rows = TokenRows(width, self.sides)

    def wants(self, cells: Cells) -> Sequence[Cells]:
        """A window for each cell."""
        return [(cells[0] * side, cells[1] * side) for side in self.sides[1:]]

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        """(V, N, H) to the same.

        Raises:
            ValueError: If the own encoder's grid is not `base_window` times as fine as that of the tokens.
        """
        _check_base(sight, self.sides[0])
        own = self.encoders[0](self.own(sight.base.values))
        # Views times cells, as the queries of the layers.
        context = own.mean(dim=1).repeat_interleave(x.shape[1], dim=0)
        found: list[tuple[int, Tensor, float]] = [(0, windows_of(own, sight.cells, self.sides[0]), 1.0)]
        for each in self.seen(x, sight):
            which = 1 + each.index
            projected = self.encoders[which](each.values)
            found.append((which, windows_of(projected, sight.cells, self.sides[which]), each.weight))
        if sight.along is not None:
            sight.along.append(self.rows.joined(context, found).unflatten(0, x.shape[:2]))
        results, shares = list[Tensor](), list[dict[int, Tensor]]()
        for query, layers in zip(self.queries, self.groups, strict=True):
            state, asked = query.expand_as(context), cast(nn.ModuleList, layers)
            for layer in asked:
                state, share = layer(state, context, found)
                shares.append(share)
            results.append(state)
        if self.watched is not None:
            for which in shares[0]:
                self.watched[f"attention/{which}"] = torch.stack([share[which] for share in shares]).mean()
        out = self.projector(torch.cat(results, dim=-1)).view(*x.shape[:2], -1)
        if self.gate is None:
            return out.to(x.dtype)
        gate = self.gate.tanh()
        added = (out * gate).to(x.dtype)
        if self.watched is not None:
            self.watched |= {"gate": gate.detach().abs(), "added": length(added) / length(x)}
        return x + added

    def insert(self, number: int, states: Tensor, rows: Tensor) -> Tensor:
        """See `Mixer`."""
        context, found = self.rows.parts(self.own(rows))
        layer = cast(AggregatorLayer, self.inserted[number])
        change, _ = layer.change(self.own(states), context, found)
        in_cell = cast(Tensor, found[0][-1]).unsqueeze(1)
        return states + (change * in_cell).to(states.dtype)


class AggregatorLayer(nn.Module):
    """One layer: q' = W_in [q; W_context g]; q + MLP(LayerNorm(q' + attention of q' to the windows)).

    Args:
        width: Of everything.
        heads: Of the attention.
        sides: Of each encoder's windows; where there is more than one position, each has a learned embedding.
        query: Of what goes in and comes out, where it is another.
        zero: Whether nothing is added at first.
    """

    def __init__(
        self, width: int, heads: int, sides: Sequence[int], query: int | None = None, *, zero: bool = False
    ) -> None:
        super().__init__()
        query = width if query is None else query
        self.context = nn.Linear(width, width, bias=False)
        self.join = nn.Linear(query + width, width, bias=False)
        self.attention = Attention(width, [width] * len(sides), width, heads, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width, bias=False), nn.GELU(), nn.Linear(width, query, bias=False))
        if zero:
            nn.init.zeros_(cast(Tensor, self.mlp[2].weight))
        self.positions = nn.ParameterDict(
            {str(which): torch.randn(side**2, width) for which, side in enumerate(sides) if side > 1}
        )

    def forward(self, query: Tensor, context: Tensor, found: Found) -> tuple[Tensor, dict[int, Tensor]]:
        """The queries one layer on, and how much of the attention each encoder had; see `change`."""
        change, shares = self.change(query, context, found)
        return query + change, shares

    def change(self, query: Tensor, context: Tensor, found: Found) -> tuple[Tensor, dict[int, Tensor]]:
        """What is added to the queries, and how much of the attention each encoder had.

        Args:
            query: (M, query).
            context: (M, C), g: the mean of the model's own encoder over the view.
            found: For each encoder that takes part, which it is, its windows (M, s, C), and one, or zero for one that
                must not be attended to but whose parameters must have gradients; or that for each query, (M,).
        """
        joined = self.join(torch.cat([query, self.context(context)], dim=-1))
        placed = [
            (which, has + self.positions[str(which)] if str(which) in self.positions else has, weight)
            for which, has, weight in found
        ]
        attended, shares = self.attention(joined, placed)
        return self.mlp(self.norm(joined + self.out(attended))), shares


def _check_base(sight: Sight, side: int) -> None:
    """The grid of the model's own encoder is `side` times as fine as that of the tokens."""
    (rows, columns), (fine_rows, fine_columns) = sight.cells, sight.base.cells
    if (fine_rows, fine_columns) == (rows * side, columns * side):
        return
    grids = f"{fine_rows} x {fine_columns} cells of the model's own encoder for {rows} x {columns} tokens"
    ratio = fine_rows // rows
    if (rows * ratio, columns * ratio) == (fine_rows, fine_columns):
        raise ValueError(f"base_window is {side}, but there are {grids}: set base_window: {ratio}")
    raise ValueError(f"{grids} do not divide into square windows: sva cannot be used with this model at this size")
