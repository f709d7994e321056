"""An objective with parameters of its own: shared by all ranks, though DDP wraps the model alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mllm_align.contract import Objective, Outcome, Signals


def as_module(objective: Any) -> nn.Module | None:
    """The objective as a module, or None where it is plain maths."""
    return objective if isinstance(objective, nn.Module) else None


def outcome_of(objective: Objective, policy: Signals, reference: Signals | None) -> Outcome:
    """What an objective makes of the signals.

    Raises:
        ValueError: If a user's own objective returns something else than an `Outcome`.
    """
    outcome = objective(policy, reference)
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


def share(objective: Any) -> None:
    """Gives every rank the first one's parameters and buffers (a collective)."""
    module = as_module(objective)
    for tensor in module.state_dict().values() if module is not None else ():
        torch.distributed.broadcast(tensor, src=0)


def average_gradients(objective: Any, world_size: int) -> None:
    """Averages gradients over ranks as DDP does (a collective); a rank that did not use a parameter counts as zero."""
    for parameter in trained_parameters(objective):
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.distributed.all_reduce(gradient)
        parameter.grad = gradient / world_size
