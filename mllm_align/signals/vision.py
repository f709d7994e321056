"""One vision pass per distinct image, shared by policy and reference as far as nothing trained lies in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from mllm_align.families import Family, inner, unwrap
from mllm_align.signals.reference import FrozenCopy
from mllm_align.vision.mixed_vision import mixed_of


def is_trained(module: nn.Module) -> bool:
    """Whether a module's output may differ between policy and reference: it trains, or holds an adapter."""
    return any(parameter.requires_grad for parameter in module.parameters()) or holds_adapter(module)


def holds_adapter(module: nn.Module) -> bool:
    """Whether PEFT put a layer or a copy of its own anywhere into a module."""
    return any(isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper) for part in module.modules())


def trained_image_parameters(family: Family, model: Any) -> list[str]:
    """Names of what trains and image tokens hang on: everything but the decoder and its head.

    More than tower and projector: LLaVA-NeXT's newline is a parameter of its own.
    """
    head = {id(parameter) for parameter in model.get_output_embeddings().parameters()}
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and family.scope_of(name) != "language" and id(parameter) not in head
    ]


def features_are_shared(family: Family, model: nn.Module) -> bool:
    """Whether policy and reference read the very same image tokens."""
    adapted = any(is_trained(module) for module in family.vision_modules(model))
    return not adapted and not trained_image_parameters(family, model)


def reads_the_same_tokens(family: Family, model: nn.Module, reference: Any) -> bool:
    """Whether a reference may be given the image tokens of the policy: nothing in them trains, and a copy's own vision
    weights are the policy's (compared once)."""
    if not features_are_shared(family, model):
        return False
    if not isinstance(reference, FrozenCopy):
        return True
    if id(model) not in reference.sees_alike:
        other = unwrap(reference.model)
        mixed, theirs = mixed_of(inner(model)), mixed_of(inner(other))
        alike = mixed is None or theirs is None or mixed.settings == theirs.settings
        reference.sees_alike[id(model)] = alike and _equal_weights(
            _vision_weights(family, model), _vision_weights(family, other)
        )
    return reference.sees_alike[id(model)]


def _vision_weights(family: Family, model: nn.Module) -> dict[str, Tensor]:
    scopes = ("projector", "vision", "mixer", "encoders")
    return {name: value for name, value in model.state_dict().items() if family.scope_of(name) in scopes}


def _equal_weights(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    # `torch.equal` looks past precision, but another precision makes other tokens of the same weights.
    return left.keys() == right.keys() and all(
        value.shape == right[name].shape
        and value.dtype == right[name].dtype
        and bool(torch.equal(value, right[name].to(value.device)))
        for name, value in left.items()
    )


@contextmanager
def frozen_tower_once(family: Family, model: nn.Module, *, encoders: bool = True) -> Iterator[Callable[[], None]]:
    """Inside, a frozen tower runs once, without a graph; after `again()` its outputs are handed out in the same order.

    So does each further encoder of a mixer that is frozen, unless `encoders` says that their features are kept
    elsewhere.

    Where the projector trains, policy and reference need image tokens of their own, but the tower before it is the
    same for both. A tower that holds the projector (Qwen), or that trains, runs each time.

    Yields:
        `again`, to be called before the same images are encoded once more.
    """
    mixed = mixed_of(inner(model))
    modules = [family.module(model, family.tower), *(mixed.seeing if mixed is not None and encoders else [])]
    with ExitStack() as stack:
        kept = [stack.enter_context(_once(module)) for module in modules if not is_trained(module)]

        def again() -> None:
            for each in kept:
                each()

        yield again


@contextmanager
def _once(module: nn.Module) -> Iterator[Callable[[], None]]:
    """Inside, each call of a module is made once; after the function that this yields, the same are answered again."""
    original, own = module.forward, module.__dict__.get("forward")
    outputs: list[Any] = []
    calls = [0]

    def forward(*args: Any, **kwargs: Any) -> Any:
        number = calls[0]
        calls[0] += 1
        if number == len(outputs):
            with torch.no_grad():
                outputs.append(original(*args, **kwargs))
        return _copy(outputs[number])

    def again() -> None:
        calls[0] = 0

    module.forward = forward
    try:
        yield again
    finally:
        # What another library put in its place (to move inputs between devices) is put back.
        if own is None:
            del module.forward
        else:
            module.forward = own


def _copy(output: Any) -> Any:
    """A new container for the same tensors: callers write their own results into what the tower returned."""
    return type(output)(**output) if hasattr(output, "keys") else output
