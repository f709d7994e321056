"""Objectives that are modules, and can tell with which options they were made, as dataclasses can."""

from __future__ import annotations

import inspect
from typing import Any, Self

from torch import nn


class WithOptions(nn.Module):
    """A module that remembers the arguments of its constructor, defaults included, and shows them as its `repr`.

    Example:
        >>> class Cosine(WithOptions):
        ...     def __init__(self, temperature: float = 0.07, dim: int | None = None) -> None:
        ...         super().__init__()
        >>> Cosine(0.1)
        Cosine(temperature=0.1)
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Copies and unpickled ones are made without arguments, and get what is remembered back with their state."""
        made = super().__new__(cls)
        object.__setattr__(made, "arguments", (args, kwargs))
        return made

    @property
    def options(self) -> dict[str, Any]:
        """Every option by name; those that it hands on to parts are as these have them."""
        signature = inspect.signature(type(self))
        args, kwargs = self.__dict__["arguments"]
        given = signature.bind_partial(*args, **kwargs)
        given.apply_defaults()
        rest = next((name for name, item in signature.parameters.items() if item.kind is item.VAR_KEYWORD), None)
        if rest is None:
            return given.arguments
        own, passed = given.arguments, given.arguments.pop(rest)
        handed: dict[str, Any] = {}
        for part in self.children():
            handed |= part.options if isinstance(part, WithOptions) else {}
        handed |= passed
        return own | {name: value for name, value in handed.items() if name not in own}

    def extra_repr(self) -> str:
        """The options that are something."""
        told = {name: value for name, value in self.options.items() if value is not None and value != ()}
        return ", ".join(f"{name}={value!r}" for name, value in told.items())
