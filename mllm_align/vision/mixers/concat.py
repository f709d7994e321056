"""Features of several encoders concatenated in front of one projector."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mllm_align.vision.mixers.base import Mixer, Sight, Widths
from mllm_align.vision.mixers.options import one_of
from mllm_align.vision.mixers.parts import length, normaliser


class ChannelConcat(Mixer):
    """Channel concatenation, as in Prismatic (Karamcheti et al., 2024), https://arxiv.org/abs/2402.07865, and Eagle
    (Shi et al., 2024), https://arxiv.org/abs/2408.15998

    Widens the projector's first linear layer by the channels of the further encoders. That layer's output is linear in
    its input, so the new columns W are kept here and W concat(extra) is added to its output; the layer itself, which
    may be quantised or have an adapter, stays as it is.

    Args:
        init: "zero": new columns start at zero, so the model starts as it was, and have a gradient from the first step
            on. "random": they start as `nn.Linear` would make them in a layer of the new width, as in Prismatic and
            Eagle, which train the whole projector from scratch; the model's own must then train too.
        norm: What is done to the vectors of further encoders first: "none" or "layer" (LayerNorm).
        encoder_dropout: See `Mixer`.
    """

    place = "linear"

    def __init__(
        self, widths: Widths, *, init: str = "zero", norm: str = "none", encoder_dropout: float = 0.0
    ) -> None:
        one_of("init", init, ("zero", "random"))
        one_of("norm", norm, ("none", "layer"))
        super().__init__(widths, encoder_dropout=encoder_dropout, init=init, norm=norm)
        self.starts_as_identity = init == "zero"
        self.norms = nn.ModuleList(normaliser(norm, each) for each in widths.extra)
        self.columns = nn.ModuleList(nn.Linear(each, widths.place, bias=False) for each in widths.extra)
        # What nn.Linear takes: one over the root of all the inputs.
        bound = 1 / math.sqrt(widths.base + sum(widths.extra)) if init == "random" else 0.0
        for each in self.columns.parameters():
            nn.init.uniform_(each, -bound, bound)

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        """(V, N, D) to the same."""
        total = x
        for each in self.seen(x, sight):
            added = (self.columns[each.index](self.norms[each.index](each.values)) * each.weight).to(x.dtype)
            total = total + added
            if self.watched is not None:
                new, old = length(added), length(x)
                self.watched[f"added/{1 + each.index}"] = new / (new + old)
        return total

    def joined(self, x: Tensor, sight: Sight) -> Tensor:
        """(V, N, base) to (V, N, base + extra): what a projector reads whose first layer has the columns itself."""
        parts = [x]
        for width, norm, each in zip(self.widths.extra, self.norms, sight.extra, strict=True):
            shape = (*x.shape[:2], width)
            parts.append(x.new_zeros(shape) if each is None else norm(self.own(each.values)).to(x.dtype))
        return torch.cat(parts, dim=-1)
