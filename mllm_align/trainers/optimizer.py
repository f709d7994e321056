"""Learning rates by part: language model and tower, projector, mixers, the objective's heads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from mllm_align.families import Family

BASE, PROJECTOR, MIXER, HEAD = "base", "projector", "mixer", "head"
WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")


def part_of(name: str, family: Family) -> str:
    """The learning-rate group of a model parameter, by its name in the (PEFT-wrapped) model."""
    for prefix in WRAPPERS:
        name = name.removeprefix(prefix)
    if "mixer" in name.split("."):
        return MIXER
    return PROJECTOR if family.scope_of(name) == "projector" else BASE


def learning_rates_by_part(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    family: Family,
    objective: nn.Module | None,
    args: Any,
) -> None:
    """Gives every part of the model, and the objective's own parameters, the learning rate that `args` has for it."""
    parts = {id(parameter): part_of(name, family) for name, parameter in named_parameters}
    split_groups(optimizer, parts, {PROJECTOR: args.projector_learning_rate, MIXER: args.mixer_learning_rate})
    if objective is not None:
        rate = args.learning_rate if args.head_learning_rate is None else args.head_learning_rate
        add_heads(optimizer, objective.named_parameters(), rate, args.weight_decay)


def split_groups(
    optimizer: torch.optim.Optimizer, parts: Mapping[int, str], learning_rates: Mapping[str, float | None]
) -> None:
    """Moves the parameters of parts that have a learning rate of their own into groups of their own.

    Args:
        optimizer: Without state; its groups keep their other settings.
        parts: Per parameter id its part; others stay where they are.
        learning_rates: Per part its rate; None leaves the part where it is.
    """
    rates = {part: rate for part, rate in learning_rates.items() if rate is not None}
    extra: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        settings = {key: value for key, value in group.items() if key != "params"}
        for part, rate in rates.items():
            moved = [parameter for parameter in group["params"] if parts.get(id(parameter)) == part]
            if moved:
                extra.append(settings | {"params": moved, "lr": rate, "part": part})
        group["params"] = [parameter for parameter in group["params"] if parts.get(id(parameter)) not in rates]
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    for group in extra:
        optimizer.add_param_group(group)


def add_heads(
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[tuple[str, nn.Parameter]],
    learning_rate: float,
    weight_decay: float,
) -> None:
    """Adds the objective's parameters; matrices decay, biases and scales do not."""
    named = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for decays in (True, False):
        chosen = [p for _, p in named if (p.dim() >= 2) == decays and id(p) not in known]
        if chosen:
            decay = weight_decay if decays else 0.0
            optimizer.add_param_group({"params": chosen, "lr": learning_rate, "weight_decay": decay, "part": HEAD})


def learning_rates_of(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The present rate of every part that has one of its own."""
    return {group["part"]: float(group["lr"]) for group in optimizer.param_groups if group.get("part")}
