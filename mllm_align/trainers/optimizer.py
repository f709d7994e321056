"""Learning rates by part: language model, projector, vision tower, mixers, the objective's heads."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from mllm_align.families import Family, family_of
from mllm_align.trainers.master_weights import keeps_remainders, uses_master_weights

logger = logging.getLogger(__name__)

BASE, PROJECTOR, VISION, MIXER, HEAD = "base", "projector", "vision", "mixer", "head"
NEEDS = {
    PROJECTOR: "a projector that trains (train_projector, or projector in lora_scope)",
    VISION: "a vision tower that trains (train_vision, or vision in lora_scope)",
    MIXER: "a mixer that trains (mixer)",
}
HALF = (torch.bfloat16, torch.float16)
WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")


def part_of(name: str, family: Family) -> str:
    """The learning-rate group of a model parameter, by its name in the (PEFT-wrapped) model."""
    for prefix in WRAPPERS:
        name = name.removeprefix(prefix)
    if "mixer" in name.split("."):
        return MIXER
    return {"projector": PROJECTOR, "vision": VISION}.get(family.scope_of(name) or "", BASE)


def learning_rates_by_part(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    family: Family,
    objective: nn.Module | None,
    args: Any,
) -> None:
    """Gives every part of the model, and the objective's own parameters, the learning rate that `args` has for it."""
    parts = {id(parameter): part_of(name, family) for name, parameter in named_parameters}
    split_groups(optimizer, parts, _rates(args))
    if objective is not None:
        rate = args.learning_rate if args.head_learning_rate is None else args.head_learning_rate
        add_heads(optimizer, objective.named_parameters(), rate, args.weight_decay)


def warn_of_idle_rates(model: Any, args: Any) -> None:
    """Tells of a part that `args` has a learning rate for while nothing of it trains."""
    family = family_of(model)
    trains = {part_of(name, family) for name, parameter in model.named_parameters() if parameter.requires_grad}
    for part, rate in _rates(args).items():
        if rate is not None and part not in trains:
            logger.warning("%s_learning_rate is of no effect: it needs %s", part, NEEDS[part])


def warn_of_lost_steps(model: Any, args: Any, *, own_optimizer: bool = False) -> None:
    """Tells what trains in 16 bits without float32 masters, where small steps are rounded away.

    PEFT makes LoRA layers and soft prompts float32; what else trains stays as it was loaded, under autocast too.
    DeepSpeed keeps float32 weights beside it, and some optimisers, where told to, what was rounded away.

    Args:
        model: As it will be trained.
        args: Settings of the run.
        own_optimizer: Whether the user made the optimiser, which then steps what it was given.
    """
    kept_whole = args.deepspeed and (args.bf16 or args.fp16)
    if kept_whole or keeps_remainders(args):
        return
    masters = uses_master_weights(args) and not own_optimizer
    lossy = (torch.float16,) if masters else HALF
    trained = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad and p.dtype in lossy}
    if not trained:
        return
    family, dtype = family_of(model), next(iter(trained.values()))
    parts: dict[str, dict[str, None]] = {}
    for name in trained:
        path, copied, _ = name.removeprefix("base_model.model.").partition(".modules_to_save.")
        parts.setdefault(family.scope_of(path) or "other", {})[path if copied else "all of it"] = None
    logger.warning(
        "in %s a step of less than 1/%d of a weight is rounded away, and so trains: %s; %sload the model in float32 "
        "(dtype: float32), which bf16 still lets compute in 16 bits, or train LoRA layers there",
        str(dtype).removeprefix("torch."),
        round(4 / torch.finfo(dtype).eps),
        ", ".join(f"{scope} ({_some(list(names))})" for scope, names in parts.items()),
        "" if args.float32_master_weights or dtype != torch.bfloat16 else "set float32_master_weights, ",
    )


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _rates(args: Any) -> dict[str, float | None]:
    return {
        PROJECTOR: args.projector_learning_rate,
        VISION: args.vision_learning_rate,
        MIXER: args.mixer_learning_rate,
    }


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
