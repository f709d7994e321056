"""Tokens of several encoders side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mllm_align.vision.mixers.base import Cells, Mixer, Sight, Widths
from mllm_align.vision.mixers.parts import length, mlp


class InterleavedMoF(Mixer):
    """Interleaved mixture of features, I-MoF of MMVP (Tong et al., 2024), section 4.2, https://arxiv.org/abs/2401.06209

    Each further encoder has an adapter of its own, Linear-GELU-Linear as LLaVA-1.5's. The token of cell i is followed
    by what each further encoder has for that cell: out[(K + 1) i] is the model's own, out[(K + 1) i + k] encoder k's.
    Cells stay row by row. The language model reads K + 1 times as many image tokens, which the processor must write.

    Args:
        encoder_dropout: See `Mixer`.

    The tokens of an encoder that is switched off are zeros; there are as many as ever.
    """

    place = "output"
    starts_as_identity = False

    def __init__(self, widths: Widths, *, encoder_dropout: float = 0.0) -> None:
        super().__init__(widths, encoder_dropout=encoder_dropout)
        self.adapters = nn.ModuleList(mlp(each, widths.language, widths.language) for each in widths.extra)

    def num_tokens(self, cells: Cells) -> int:
        """One of each encoder for each cell."""
        return cells[0] * cells[1] * (1 + len(self.widths.extra))

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        """(V, N, H) to (V, (K + 1) N, H)."""
        branches = [x] + [torch.zeros_like(x)] * len(sight.extra)
        for each in self.seen(x, sight):
            branches[1 + each.index] = (self.adapters[each.index](each.values) * each.weight).to(x.dtype)
        if self.watched is not None:
            self.watched |= {f"norm/{index}": length(branch) for index, branch in enumerate(branches)}
        return torch.stack(branches, dim=2).flatten(1, 2)
