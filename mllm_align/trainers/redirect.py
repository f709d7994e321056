"""Running any function inside the forward pass of a wrapped model, so that DDP sees one forward and one backward.

Gradients of parameters that are used outside the wrapper's forward are not synchronised, and nothing says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Result = TypeVar("Result")


def inside_forward(wrapped: nn.Module, function: Callable[[], Result]) -> Result:
    """Calls `function` as the forward pass of `wrapped`.

    Args:
        wrapped: The model as the backward pass sees it: DDP around a model, or the model itself.
        function: May call the model and its parts; takes no arguments, so that the wrapper moves and casts nothing.

    Returns:
        What `function` returns.
    """
    held = getattr(wrapped, "module", None)
    inner: Any = held if isinstance(held, nn.Module) else wrapped
    own = inner.__dict__.get("forward")

    def restore() -> None:
        if own is None:
            inner.__dict__.pop("forward", None)
        else:
            inner.forward = own

    def forward(*args: Any, **kwargs: Any) -> Result:
        restore()
        return function()

    inner.forward = forward
    try:
        return wrapped()
    finally:
        restore()


def touch(parameters: Iterable[nn.Parameter]) -> Tensor:
    """0-d zero that every parameter takes part in.

    A rank whose batch has no image does not use the projector; DDP waits for its gradient for ever. The slice is
    empty, so not even an infinite weight can leave a trace.
    """
    parts = [parameter.flatten()[:0].sum().float() for parameter in parameters]
    return torch.stack([part.to(parts[0].device) for part in parts]).sum()
