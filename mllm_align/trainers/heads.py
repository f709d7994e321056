"""An objective with parameters of its own: shared by all ranks, though DDP wraps the model alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mllm_align.contract import KeptExpert, Objective, Outcome, Signals
from mllm_align.families import unwrap
from mllm_align.trainers.gather import over_ranks


def as_module(objective: Any) -> nn.Module | None:
    """The objective as a module, or None where it is plain maths."""
    return objective if isinstance(objective, nn.Module) else None


def make_ready(objective: Any, policy: nn.Module, teacher_widths: Mapping[str, int], device: Any) -> Any:
    """Puts an objective on the device, once its heads know how wide their features are.

    An objective, or a part of one, with a method `set_widths` is told: it is given a mapping from the names of the
    features that it needs to their widths. To be called before there is an optimiser.

    Args:
        objective: The objective; plain maths stays as it is.
        policy: The model; what is taken of it is as wide as its language model.
        teacher_widths: Per feature of a teacher.
        device: Of the run.

    Returns:
        The objective.
    """
    module = as_module(objective)
    if module is None:
        return objective
    width = unwrap(policy).config.get_text_config().hidden_size
    for part in _with_heads(module):
        names = [feature.name for feature in part.needs.features]
        part.set_widths({name: teacher_widths.get(name, width) for name in names})
    module.to(device)
    return objective


def _with_heads(module: nn.Module) -> Iterator[Any]:
    """The outermost modules that ask for widths."""
    if callable(getattr(module, "set_widths", None)):
        yield module
        return
    for child in module.children():
        yield from _with_heads(child)


def outcome_of(objective: Objective, policy: Signals, reference: Signals | None, together: Any = None) -> Outcome:
    """What an objective makes of the signals.

    Args:
        objective: The objective.
        policy: What was measured of the policy.
        reference: What was measured of the reference; not handed on where the objective wants none.
        together: A device, where the objective is to see the rows of all ranks (then a collective); or None.

    Raises:
        ValueError: If a user's own objective returns something else than an `Outcome`.
    """
    frozen = reference if objective.needs.reference else None
    if together is not None:
        policy = over_ranks(policy, together)
        frozen = over_ranks(frozen or Signals({}, {}), together) if objective.needs.reference else None
    outcome = objective(policy, frozen)
    if not isinstance(outcome, Outcome):
        raise ValueError(
            f"{type(objective).__name__} returned a {type(outcome).__name__}: an objective returns an Outcome of "
            "terms (mllm_align.contract)"
        )
    return outcome


def trained_parameters(objective: Any) -> list[nn.Parameter]:
    """What of an objective trains."""
    module = as_module(objective)
    return [] if module is None else [parameter for parameter in module.parameters() if parameter.requires_grad]


def kept_experts(objective: Any) -> list[KeptExpert]:
    """What of an objective, or of a part of one, stays after training: all that modules name in `keeps`."""
    module = as_module(objective)
    found = (getattr(part, "keeps", ()) for part in (module.modules() if module is not None else ()))
    return [kept for own in found for kept in own]


def kept_parameters(objective: Any) -> list[nn.Parameter]:
    """What of an objective trains and stays after training."""
    return [each for kept in kept_experts(objective) for each in kept.adapter.parameters() if each.requires_grad]


def ends_of(model: nn.Module, objective: Any) -> list[nn.Parameter]:
    """Where the gradient of a term may arrive, that training it be worth something: whatever stays after training."""
    return [*model.parameters(), *kept_parameters(objective)]


@contextmanager
def mode(objective: Any, training: bool) -> Iterator[None]:
    """The objective in training or evaluation mode, and as before when it ends."""
    module = as_module(objective)
    before = module is not None and module.training
    if module is not None:
        module.train(training)
    try:
        yield
    finally:
        if module is not None:
            module.train(before)


def share(objective: Any, averaged: Any = None) -> None:
    """Gives every rank the first one's parameters and buffers, and averaged weights (a collective)."""
    if averaged is not None:
        averaged.share()
    module = as_module(objective)
    for tensor in module.state_dict().values() if module is not None else ():
        torch.distributed.broadcast(tensor, src=0)


def average_gradients(objective: Any, world_size: int) -> None:
    """Averages gradients over ranks as DDP does (a collective); a rank that did not use a parameter counts as zero."""
    for parameter in trained_parameters(objective):
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.distributed.all_reduce(gradient)
        parameter.grad = gradient / world_size
