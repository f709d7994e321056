"""What the policy is compared with: the same model without its adapters, another adapter, or a frozen copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn


class Reference(Protocol):
    """Gives the reference model for the duration of a `with` block."""

    def on(self, model: nn.Module) -> Any:
        """A context manager that yields the reference; everything of the policy is as before when it ends."""
        ...


@contextmanager
def keep_requires_grad(model: nn.Module) -> Iterator[None]:
    """Restores every parameter's `requires_grad`.

    PEFT makes all adapter tensors trainable when `disable_adapter()` ends, those that were frozen before too.
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in before:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)


@dataclass(frozen=True)
class AdaptersOff:
    """The policy's own base: LoRA layers off, trained copies (`modules_to_save`) replaced by their originals."""

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[nn.Module]:
        """Yields `model` with its adapters off.

        Raises:
            ValueError: If the model has no adapters to switch off.
        """
        disable = getattr(model, "disable_adapter", None)
        if disable is None:
            raise ValueError("a reference by switching adapters off needs a PEFT model; pass peft_config or ref_model")
        with keep_requires_grad(model), disable():
            yield model


@dataclass(frozen=True)
class NamedAdapter:
    """Another adapter on the same base, by name."""

    name: str

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[nn.Module]:
        """Yields `model` with the named adapter active.

        Raises:
            ValueError: If there is no such adapter.
        """
        adapters = list(getattr(model, "peft_config", {}))
        if self.name not in adapters:
            raise ValueError(f"no adapter {self.name!r} to use as reference; loaded: {', '.join(adapters) or 'none'}")
        active: Any = model.active_adapter
        with keep_requires_grad(model):
            model.set_adapter(self.name)  # type: ignore[operator]
            try:
                yield model
            finally:
                model.set_adapter(active)  # type: ignore[operator]


@dataclass(frozen=True)
class FrozenCopy:
    """Another model of the same family, held in memory (full fine-tuning).

    Attributes:
        model: The copy.
        sees_alike: Whether its vision side is known to be the policy's, by the policy's identity; filled on first use.
    """

    model: nn.Module
    sees_alike: dict[int, bool] = field(default_factory=dict, compare=False, repr=False)

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[nn.Module]:
        """Yields the copy; `model` is not touched."""
        yield self.model
