"""Each token looks at what finer grids of further encoders have in its cell."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mllm_align.vision.mixers.base import Cells, Mixer, Sight, Widths
from mllm_align.vision.mixers.options import per_encoder, whole
from mllm_align.vision.mixers.parts import Attention, length, windows


class WindowAttention(Mixer):
    """Patch info mining, after Mini-Gemini (Li et al., 2024), section 3.2, https://arxiv.org/abs/2403.18814

    Each token queries the m x m window that lies in its cell on each further encoder's grid: LayerNorm and Linear make
    queries, keys and values, one softmax goes over the windows of all further encoders, and what comes out is added.

    Args:
        window: How many rows, and columns, of a further encoder's grid lie in one cell: one number, or one for each.
        width: Of keys and values; by default that of the model's own encoder.
        heads: Of the attention.
        encoder_dropout: See `Mixer`.

    Deviations:
        Mini-Gemini mines in front of the projector, for one further encoder, and adds what was attended to as it is.
        Here the tokens behind the projector ask, so that all families take it, and a linear layer without bias that
        starts at zero comes last, so that the model starts as it was: at the first step that layer alone has a
        gradient.
    """

    place = "output"

    def __init__(
        self,
        widths: Widths,
        *,
        window: int | Sequence[int] = 2,
        width: int | None = None,
        heads: int = 1,
        encoder_dropout: float = 0.0,
    ) -> None:
        sides = [whole("window", each) for each in per_encoder("window", window, len(widths.extra))]
        inner = whole("width", widths.base if width is None else width)
        if inner % whole("heads", heads):
            raise ValueError(f"width {inner} cannot be split into {heads} heads")
        super().__init__(widths, encoder_dropout=encoder_dropout, window=sides, width=inner, heads=heads)
        self.sides = sides
        self.attention = Attention(widths.language, widths.extra, inner, heads, bias=True)
        self.out = nn.Linear(inner, widths.language, bias=False)
        nn.init.zeros_(self.out.weight)

    def wants(self, cells: Cells) -> Sequence[Cells]:
        """A window for each cell."""
        return [(cells[0] * side, cells[1] * side) for side in self.sides]

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        """(V, N, H) to the same."""
        found = [
            (each.index, windows(each.values, sight.cells, self.sides[each.index]), each.weight)
            for each in self.seen(x, sight)
        ]
        if not found:
            return x
        attended, shares = self.attention(self.own(x).flatten(0, 1), found)
        added = self.out(attended).view_as(x).to(x.dtype)
        if self.watched is not None:
            self.watched |= {f"attention/{1 + index}": share for index, share in shares.items()}
            self.watched["added"] = length(added) / length(x)
        return x + added
