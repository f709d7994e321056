"""One batch in one graph: everything of a step that touches the model or the objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mllm_align.contract import Batch, Outcome, Signals
from mllm_align.signals import measure
from mllm_align.signals.features import scored_views
from mllm_align.trainers.averaged import with_averaged
from mllm_align.trainers.heads import outcome_of
from mllm_align.trainers.metrics import with_lost_objects
from mllm_align.trainers.redirect import touch
from mllm_align.trainers.window import zero_signals

if TYPE_CHECKING:
    from mllm_align.trainers.trainer import AlignTrainer


def wanted_of(trainer: AlignTrainer) -> dict[str, Any]:
    """What is measured of a batch, and how; features of averaged weights are a measuring of their own."""
    needs = trainer.objective.needs
    features = tuple(feature for feature in needs.features if feature.momentum is None)
    scored = scored_views(needs)
    return {"tokens": needs.tokens, "features": features, "scored": scored, "options": trainer.options}


def measured(trainer: AlignTrainer, batch: Batch) -> tuple[Outcome, Signals, Tensor | None]:
    """The outcome of a batch, what was measured of the policy, and, in training, a zero on all parameters.

    In training the objective may be shown the rows of all ranks, and is then asked also where this one has none;
    in evaluation ranks may have unequal numbers of batches, and each keeps to its own rows.
    """
    trains = torch.is_grad_enabled()
    zero = touch(p for p in trainer.model.parameters() if p.requires_grad) if trains else None
    together = trainer.args.device if trainer.together and trains else None
    if batch.is_idle:
        policy, reference = zero_signals(batch, device=trainer.args.device), None
        if together is None:
            return Outcome(()), policy, zero
    else:
        with trainer.accelerator.autocast():
            policy, reference = measure(trainer.model, batch, reference=trainer.reference, **wanted_of(trainer))
        policy = with_averaged(trainer, batch, policy)
    outcome = outcome_of(trainer.objective, policy, reference, together)
    return with_lost_objects(outcome, batch), policy, zero
