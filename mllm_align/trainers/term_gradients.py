"""What each term pulls at: the norm of its own gradient, for every part of the model that trains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mllm_align.contract import Outcome
from mllm_align.families import family_of
from mllm_align.trainers.heads import trained_parameters
from mllm_align.trainers.optimizer import HEAD

if TYPE_CHECKING:
    from mllm_align.trainers.config import AlignConfig
    from mllm_align.trainers.trainer import AlignTrainer


class TermGradients:
    """Measures, every so many optimiser steps, the L2 norm of the gradient of each term alone, by part of the model.

    Each term goes back through the graph by itself, before the step does, and into tensors of its own: gradients,
    random state and weights of the run stay what they are without it.

    Args:
        every: Steps from one that is measured to the next; the first is. None for none.
    """

    def __init__(self, every: int | None) -> None:
        self.every = every
        self._sums: dict[str, list[Tensor]] = {}

    def measure(
        self, trainer: AlignTrainer, outcome: Outcome, counts: Mapping[str, float | Tensor]
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Takes in one micro-batch (where there are several ranks, a collective).

        Args:
            trainer: In a training step.
            outcome: With its graph, which is kept.
            counts: Of the window, per term, the same on all ranks.

        Returns:
            With the last micro-batch of a step that is measured, as `Averages.add` takes them: "grad_norm/PART/TERM",
            the norm of the whole step's gradient of sum / count, without the term's weight; and 1, or 0 where no row
            of the window has the term.
        """
        if not self.every or trainer.state.global_step % self.every:
            return
        parts = trained_parts(trainer.model, trainer.objective)
        parameters = [parameter for own in parts.values() for parameter in own]
        scaler: Any = trainer.accelerator.scaler
        scale = 1.0 if scaler is None else scaler.get_scale()
        shares = {term.name: trainer.share_of(Outcome((term._replace(weight=1.0),))) for term in outcome.terms}
        for name in sorted(counts):
            # A rank without rows may have no terms, and takes part all the same.
            found = gradients_of(shares[name] * scale if name in shares else torch.zeros(()), parameters)
            before = self._sums.pop(name, None)
            if before is not None:
                found = [old + new for old, new in zip(before, found, strict=True)]
            if not trainer.accelerator.sync_gradients:
                self._sums[name] = found
                continue
            if trainer.args.world_size > 1:
                for gradient in found:
                    torch.distributed.all_reduce(gradient)
            each = iter(found)
            for part, own in parts.items():
                norm = norm_of([next(each) for _ in own]) / (scale * trainer.args.world_size)
                yield f"grad_norm/{part}/{name}", norm, (torch.as_tensor(counts[name]) > 0).float()


def trained_parts(model: nn.Module, objective: Any) -> dict[str, list[nn.Parameter]]:
    """What trains, by part: as `Family.scope_of` says, "other" (the vocabulary head), "head" (of the objective).

    Parts without such parameters are left out.
    """
    family = family_of(model)
    parts: dict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts[family.scope_of(name.removeprefix("base_model.model.")) or "other"].append(parameter)
    own = trained_parameters(objective)
    return {**parts, HEAD: own} if own else dict(parts)


def gradients_of(value: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """The gradient with respect to each parameter, zero where none arrives; the graph stays, and so does `grad`."""
    if not value.requires_grad:
        return [torch.zeros_like(parameter) for parameter in parameters]
    return list(torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True))


def norm_of(tensors: list[Tensor]) -> Tensor:
    """0-d: the L2 norm of all numbers together, in float32 at least."""
    norms = [torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors]
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0]) for norm in norms]))


def check_settings(args: AlignConfig) -> None:
    """Refuses a run whose terms cannot go back through the graph one by one.

    Raises:
        ValueError: Naming the setting and the mend.
    """
    every = args.log_term_gradients_every
    if every is None:
        return
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"log_term_gradients_every must be a number of steps of at least 1 or None, not {every!r}")
    kwargs = args.activation_checkpointing_kwargs
    reentrant = isinstance(kwargs, dict) and kwargs.get("use_reentrant")
    refused = {
        "cache_gradients": (args.cache_gradients, "lets go of the graph before there is a gradient"),
        "deepspeed": (args.deepspeed, "holds parameters in pieces"),
        "torch_compile": (args.torch_compile, "makes layers that can be gone back through once alone"),
        "use_reentrant in activation_checkpointing_kwargs": (reentrant, "knows the gradient of the whole step alone"),
    }
    for setting, (is_set, reason) in refused.items():
        if is_set:
            raise ValueError(
                f"log_term_gradients_every sends each term back through the graph by itself, and {setting} {reason}: "
                "leave one of both out"
            )
