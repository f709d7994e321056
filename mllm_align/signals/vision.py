"""One vision pass per distinct image, shared by policy and reference as far as nothing trained lies in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from mllm_align.families import Family


def is_trained(module: nn.Module) -> bool:
    """Whether a module's output may differ between policy and reference: it trains, or holds an adapter."""
    if any(parameter.requires_grad for parameter in module.parameters()):
        return True
    return any(isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper) for part in module.modules())


def features_are_shared(family: Family, model: nn.Module) -> bool:
    """Whether policy and reference read the very same image tokens."""
    return not any(is_trained(module) for module in family.vision_modules(model))


@contextmanager
def frozen_tower_once(family: Family, model: nn.Module) -> Iterator[None]:
    """Inside, a frozen tower runs once for equal inputs, without a graph; its output is handed out again.

    Where the projector trains, policy and reference need image tokens of their own, but the tower before it is the
    same for both. A tower that holds the projector (Qwen), or that trains, runs each time.
    """
    tower = family.module(model, family.tower)
    if is_trained(tower):
        yield
        return
    original = tower.forward
    seen: list[tuple[Any, Any, Any]] = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        for old_args, old_kwargs, output in seen:
            if _same(args, old_args) and _same(kwargs, old_kwargs):
                return _copy(output)
        with torch.no_grad():
            output = original(*args, **kwargs)
        seen.append((args, kwargs, output))
        return _copy(output)

    tower.forward = forward
    try:
        yield
    finally:
        del tower.forward


def _copy(output: Any) -> Any:
    """A new container for the same tensors: callers write their own results into what the tower returned."""
    return type(output)(**output) if hasattr(output, "keys") else output


def _same(new: Any, old: Any) -> bool:
    if isinstance(new, torch.Tensor) and isinstance(old, torch.Tensor):
        return new is old or (new.shape == old.shape and bool(torch.equal(new, old)))
    if isinstance(new, tuple | list):
        return isinstance(old, type(new)) and len(new) == len(old) and all(map(_same, new, old))
    if isinstance(new, dict):
        return isinstance(old, dict) and new.keys() == old.keys() and all(_same(new[key], old[key]) for key in new)
    return bool(new is old or new == old)
