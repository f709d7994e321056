"""Float32 masters of what trains in bfloat16: the optimiser steps them, and the model has what they round to.

A step of less than 1/512 of a bfloat16 weight is rounded away; in a master such steps add up. This is the master copy
of mixed precision training (https://arxiv.org/abs/1710.03740), without loss scaling, which bfloat16 does not need.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

STATE_KEY = "master_weights"
# They step amid the backward pass, or move weights between steps too.
WITHOUT_MASTERS = ("lomo", "adalomo", "schedule_free")


@dataclass
class _Pair:
    """A parameter of the model, its master, and the parameter's version when it last had what the master rounds to."""

    parameter: nn.Parameter
    master: nn.Parameter
    version: int | None = None


class MasterWeights:
    """Puts float32 masters in the place of an optimiser's bfloat16 parameters, and keeps model and masters in step.

    Before a step the gradients of the model, clipped and averaged by then, become those of the masters, and after it
    the model gets the masters, rounded. The optimiser's groups and states are those of the masters from then on, so
    that moments are float32 too. They are in its `state_dict`, which makes a resumed run the same to the last bit.
    What else changes a weight of the model (a checkpoint, another rank's values) changes its master at the next step.

    Args:
        optimizer: Before its first step; changed in place. Parameters of other types stay in it as they are.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """Replaces the parameters; see the class."""
        self._pairs: dict[int, _Pair] = {}
        index = 0
        for group in optimizer.param_groups:
            for place, parameter in enumerate(group["params"]):
                if has_master(parameter):
                    pair = _Pair(parameter, nn.Parameter(parameter.detach().float()))
                    group["params"][place] = pair.master
                    if parameter in optimizer.state:  # Adagrad has one from the beginning
                        optimizer.state[pair.master] = _whole(optimizer.state.pop(parameter))
                    self._pairs[index] = pair
                index += 1
        if not self._pairs:
            return
        self._hand_on_overrides(optimizer)
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)
        optimizer.register_state_dict_post_hook(self._save)
        # No hook: the optimisers of bitsandbytes load without calling any.
        load = optimizer.load_state_dict

        def load_with_masters(state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            load(state_dict, *args, **kwargs)
            self._restore(state_dict.get(STATE_KEY, {}))

        optimizer.load_state_dict = load_with_masters  # type: ignore[method-assign]

    def _hand_on_overrides(self, optimizer: Any) -> None:
        """bitsandbytes knows by module which weights are to have 32-bit states: embeddings, as transformers has it."""
        masters = {id(pair.parameter): pair.master for pair in self._pairs.values()}
        manager = getattr(optimizer, "mng", None)
        for module, name, override in getattr(manager, "module_weight_config_triple", ()):
            master = masters.get(id(getattr(module, name)))
            if master is not None:
                manager.override_config(master, key_value_dict=dict(override))  # type: ignore[union-attr]

    @torch.no_grad()
    def _before_step(self, *_: Any) -> None:
        for pair in self._pairs.values():
            parameter, master = pair.parameter, pair.master
            if parameter.grad is None:
                continue
            if parameter._version != pair.version:
                same = master.to(parameter.dtype) == parameter
                master.copy_(torch.where(same, master, parameter))
            master.grad = parameter.grad.float()

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        for pair in self._pairs.values():
            if pair.master.grad is None:
                continue
            pair.parameter.copy_(pair.master)
            pair.version = pair.parameter._version
            pair.master.grad = None

    def _save(self, _: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        state_dict[STATE_KEY] = {index: pair.master.detach() for index, pair in self._pairs.items()}

    @torch.no_grad()
    def _restore(self, saved: Mapping[int, Tensor]) -> None:
        """Takes masters over by their place in the optimiser; the next step uses those that round to the model's."""
        for index, pair in self._pairs.items():
            if index in saved and saved[index].shape == pair.master.shape:
                pair.master.copy_(saved[index])
                pair.version = None


def _whole(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.float() if has_master(value) else value for key, value in state.items()}


def uses_master_weights(args: Any) -> bool:
    """Whether a run with these settings has masters of what trains in bfloat16.

    DeepSpeed has float32 weights of its own, and some optimisers keep what was rounded away.
    """
    optimiser = str(getattr(args.optim, "value", args.optim))
    steps_at_once = not optimiser.startswith(WITHOUT_MASTERS) and not optimiser.endswith("layerwise")
    wanted = args.float32_master_weights and steps_at_once and not args.deepspeed
    return bool(wanted and not keeps_remainders(args))


def keeps_remainders(args: Any) -> bool:
    """Whether the optimiser was told to keep what is rounded away, or to round at random."""
    told = (args.optim_args or "").lower().replace(" ", "").split(",")
    return any(("kahan" in each or "stochastic" in each) and not each.endswith("=false") for each in told)


def with_master_weights(trainer: Any, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimiser of a trainer, with masters where its settings have them."""
    # A launcher may bring DeepSpeed without the settings' knowing.
    if uses_master_weights(trainer.args) and not trainer.is_deepspeed_enabled:
        MasterWeights(optimizer)
    return optimizer


def has_master(value: Any) -> bool:
    """Whether what an optimiser steps, or keeps, is one of the tensors that become float32."""
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16


def stepped(trained: Iterable[Tensor], args: Any) -> tuple[list[Tensor], int]:
    """What the optimiser of a run steps, for its shapes and types alone, and the bytes of masters among it."""
    masters = uses_master_weights(args)
    found = [
        torch.empty_like(p, dtype=torch.float32, device="meta") if masters and has_master(p) else p for p in trained
    ]
    return found, sum(each.numel() * each.element_size() for each in found if each.is_meta)
