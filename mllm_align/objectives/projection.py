"""Linear heads that bring features of different widths into one space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class Projection(nn.Module):
    """A linear head without bias for each side of a contrast; or none, where both sides have one width already.

    Args:
        owner: How errors speak of the objective.
        sides: Per side the names of the features that go through its head, all of one width.
        dim: Width of the common space; None for no heads.

    Raises:
        ValueError: If `dim` is not a whole number above 0.
    """

    def __init__(self, owner: str, sides: Mapping[str, Sequence[str]], dim: int | None) -> None:
        super().__init__()
        if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int) or dim < 1):
            raise ValueError(f"{owner}: dim must be a whole number above 0, or nothing for no heads, got {dim!r}")
        self.owner, self.sides, self.dim = owner, {side: tuple(names) for side, names in sides.items()}, dim
        self.heads = nn.ModuleDict()

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Makes the heads; a second call with the same widths changes nothing.

        Raises:
            ValueError: If a feature's width is not told, or the features of a side differ in width, or those of all
                sides without heads.
        """
        found = {side: self._width(side, widths) for side in self.sides}
        if self.dim is None:
            if len(set(found.values())) > 1:
                raise ValueError(f"{self.owner}: without heads, both sides must be of one width, not {found}: set dim")
            return
        made = {side: head.get_parameter("weight").shape[1] for side, head in self.heads.items()}
        if made and made != found:
            raise ValueError(f"{self.owner}: its heads are made for widths {made}, not {found}")
        if not made:
            self.heads.update({side: nn.Linear(width, self.dim, bias=False) for side, width in found.items()})

    def _width(self, side: str, widths: Mapping[str, int]) -> int:
        missing = [name for name in self.sides[side] if name not in widths]
        if missing:
            raise ValueError(f"{self.owner}: the width of feature {missing[0]!r} is not told")
        own = {widths[name] for name in self.sides[side]}
        if len(own) > 1:
            raise ValueError(f"{self.owner}: the features of its {side} differ in width: {sorted(own)}")
        return own.pop()

    def forward(self, side: str, values: Tensor) -> Tensor:
        """(N, dim) of (N, d) features of a side.

        Raises:
            ValueError: If the heads are not made yet.
        """
        if self.dim is None:
            return values
        if side not in self.heads:
            raise ValueError(f"{self.owner}: its heads are not made: call set_widths with the width of each feature")
        weight = self.heads[side].get_parameter("weight")
        return F.linear(values, weight.to(values.dtype))
