"""What goes along with image tokens into the language model, for layers of a mixer that lie between its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mllm_align.vision.mixers.parts import Found


class TokenRows:
    """How one vector holds what such layers are to know of one image token.

    In this order: for every encoder one, or zero if it does not take part; the context; the windows. So whatever cuts,
    copies or stores vectors of tokens does so with these, and a vector of zeros is a token that no encoder has, a
    newline for example.

    Args:
        width: Of the context and of all that lies in windows.
        sides: Rows, and columns, of each encoder's windows, the model's own first.
    """

    def __init__(self, width: int, sides: Sequence[int]) -> None:
        self.width, self.sizes = width, [side**2 for side in sides]

    @property
    def size(self) -> int:
        """Numbers of one token."""
        return len(self.sizes) + (1 + sum(self.sizes)) * self.width

    def joined(self, context: Tensor, found: Found) -> Tensor:
        """(M, size) of what an aggregator's layers are given.

        Args:
            context: (M, width).
            found: As for `AggregatorLayer`; an encoder that is missing has zeros.
        """
        there = {which: (windows, weight) for which, windows, weight in found}
        weights, flat = list[Tensor](), list[Tensor]()
        for which, size in enumerate(self.sizes):
            windows, weight = there.get(which, (context.new_zeros(len(context), size, self.width), 0.0))
            weights.append(torch.as_tensor(weight).to(context).expand(len(context)).unsqueeze(1))
            flat.append(windows.flatten(1))
        return torch.cat([*weights, context, *flat], dim=1)

    def parts(self, rows: Tensor) -> tuple[Tensor, Found]:
        """The context (M, width) and every encoder's windows, with one or zero for each token, (M,)."""
        taken, context, *flat = rows.split(
            [len(self.sizes), self.width, *(size * self.width for size in self.sizes)], 1
        )
        # What a family resizes its tokens by leaves ones nearly as they are.
        weights = (taken.detach() > 0.5).to(rows.dtype).unbind(dim=1)
        return context, [
            (which, each.unflatten(1, (-1, self.width)), weight)
            for which, (each, weight) in enumerate(zip(flat, weights, strict=True))
        ]
