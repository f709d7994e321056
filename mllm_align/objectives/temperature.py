"""The learned temperature of contrastive objectives, kept as the logarithm of one over it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MAX_SCALE = 100.0


def check_temperature(owner: str, temperature: float) -> None:
    """Raises ValueError below 1/100, which a learned temperature never goes below; `owner` is named in the message."""
    if temperature < 1 / MAX_SCALE:
        raise ValueError(f"{owner}: temperature must be at least {1 / MAX_SCALE}, got {temperature!r}")


def log_scale_of(temperature: float, learn: bool) -> nn.Parameter:
    """0-d, the logarithm of one over a temperature; `learn` is whether it is trained."""
    return nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learn)


def bounded_scale(log_scale: nn.Parameter) -> Tensor:
    """0-d, one over the temperature; what has gone beyond 100 is put back there first."""
    with torch.no_grad():
        # The parameter itself: a clamped output has no gradient, and the temperature could never rise again.
        log_scale.clamp_(max=math.log(MAX_SCALE))
    return log_scale.exp()
