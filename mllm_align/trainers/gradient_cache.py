"""One training step with cached gradients: measure, differentiate the objective, send the gradient back in passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mllm_align.contract import Batch
from mllm_align.signals import Replay
from mllm_align.trainers.averaged import with_averaged
from mllm_align.trainers.guard import check_gradients
from mllm_align.trainers.heads import kept_parameters, outcome_of
from mllm_align.trainers.metrics import with_lost_objects
from mllm_align.trainers.plain_step import wanted_of
from mllm_align.trainers.redirect import inside_forward, touch
from mllm_align.trainers.window import zero_signals

if TYPE_CHECKING:
    from mllm_align.trainers.trainer import AlignTrainer


def cached_step(trainer: AlignTrainer, model: nn.Module, batch: Batch) -> Tensor:
    """Forward and backward passes of one micro-batch; the gradients are those of the plain step.

    Every pass but the last keeps its gradients to its rank, so that a step has one all-reduce.

    Args:
        trainer: Measures and counts as in its plain step.
        model: The policy as the backward pass sees it: DDP around it, or the model itself.
        batch: On the device.

    Returns:
        0-d, this batch's share of the window's loss, without a graph.
    """
    device = trainer.args.device
    if not batch.is_idle:
        loss = _passes(trainer, model, batch)
    elif trainer.together:  # the others' rows still move the objective's own parameters
        nothing = zero_signals(batch, device=device)
        loss = trainer.share_of(outcome_of(trainer.objective, nothing, None, device))
        if loss.requires_grad:
            trainer.accelerator.backward(loss)
            loss = loss.detach()
    else:
        loss = torch.zeros((), device=device)
    if trainer.args.world_size > 1:
        # The one pass that is synchronised: it adds nothing, and all that was kept back goes with it.
        inside_forward(model, lambda: touch(p for p in trainer.model.parameters() if p.requires_grad)).backward()
    return loss


def _passes(trainer: AlignTrainer, model: nn.Module, batch: Batch) -> Tensor:
    with trainer.accelerator.autocast():
        replay = Replay(trainer.model, batch, reference=trainer.reference, **wanted_of(trainer))
    together = trainer.args.device if trainer.together else None
    policy = with_averaged(trainer, batch, replay.policy)
    outcome = outcome_of(trainer.objective, policy, replay.reference, together)
    check_gradients(outcome, [*replay.leaves, *kept_parameters(trainer.objective)], trainer.checked_terms)
    trainer.count(with_lost_objects(outcome, batch), replay.policy, len(batch))
    loss = trainer.share_of(outcome)
    if not loss.requires_grad:
        return loss
    # What scales float16 losses does so here; the passes below are scaled by what they are given.
    trainer.accelerator.backward(loss)
    for run in replay.passes():
        with trainer.accelerator.no_sync(model):
            value = inside_forward(model, lambda run=run: _autocast(trainer, run))
            if value.requires_grad:
                value.backward()
    return loss.detach()


def _autocast(trainer: AlignTrainer, run: Callable[[], Tensor]) -> Tensor:
    with trainer.accelerator.autocast():
        return run()
