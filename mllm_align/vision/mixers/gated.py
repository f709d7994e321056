"""Features of further encoders added behind the projector, through a gate that starts shut."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mllm_align.vision.mixers.base import Mixer, Sight, Widths
from mllm_align.vision.mixers.options import one_of, switch
from mllm_align.vision.mixers.parts import length, mlp, normaliser


class GatedResidual(Mixer):
    """x + sum over further encoders of tanh(gate) * MLP(extra); a tanh gate as in Flamingo (Alayrac et al., 2022),
    https://arxiv.org/abs/2204.14198

    Gates start at zero, so the model starts as it was. At the first step only gates have a gradient; MLPs have one as
    soon as gates are open, from the second step on. They start as `nn.Linear` makes them: were they zero too, nothing
    would ever move.

    Args:
        per_channel: A gate for each channel of each encoder instead of one for each encoder.
        norm: What is done to the vectors of further encoders first: "none" or "layer" (LayerNorm).
        encoder_dropout: See `Mixer`.
    """

    place = "output"

    def __init__(
        self, widths: Widths, *, per_channel: bool = False, norm: str = "none", encoder_dropout: float = 0.0
    ) -> None:
        one_of("norm", norm, ("none", "layer"))
        channels = widths.language if switch("per_channel", per_channel) else 1
        super().__init__(widths, encoder_dropout=encoder_dropout, per_channel=per_channel, norm=norm)
        self.gates = nn.Parameter(torch.zeros(len(widths.extra), channels))
        self.norms = nn.ModuleList(normaliser(norm, each) for each in widths.extra)
        self.adapters = nn.ModuleList(mlp(each, widths.language, widths.language) for each in widths.extra)

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        """(V, N, H) to the same."""
        total = x
        for each in self.seen(x, sight):
            gate = self.gates[each.index].tanh()
            branch = self.adapters[each.index](self.norms[each.index](each.values))
            added = (branch * (gate * each.weight)).to(x.dtype)
            total = total + added
            if self.watched is not None:
                self.watched[f"gate/{1 + each.index}"] = gate.detach().abs().mean()
                self.watched[f"added/{1 + each.index}"] = length(added) / length(x)
        return total
