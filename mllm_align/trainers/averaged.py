"""A slow copy of what trains: features of a model whose weights are a running average of the policy's.

Only adapters, projector and what else trains is kept twice; the frozen rest, quantised or not, is shared. The copy is
float32 whatever the weights are: in bfloat16 a step of (1 - momentum) times the difference is below half a unit in the
last place, and the average would never move.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.trainer_callback import TrainerCallback

from mllm_align.contract import Batch, Feature, Signals
from mllm_align.signals import measure

if TYPE_CHECKING:
    from mllm_align.trainers.trainer import AlignTrainer

AVERAGE_FILE = "averaged.safetensors"


class AveragedWeights(TrainerCallback):
    """An exponential moving average of a model's trained parameters, from MoCo (He et al., 2020)

    https://arxiv.org/abs/1911.05722. After each optimiser step average = m * average + (1 - m) * parameter.

    Args:
        model: Its trained parameters are averaged; the average starts where they are.
        momentum: m, from 0 up to less than 1.
    """

    def __init__(self, model: nn.Module, momentum: float) -> None:
        self.momentum = momentum
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.values: dict[str, Tensor] = {name: p.detach().float().clone() for name, p in self.trained.items()}

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step of the average."""
        for name, parameter in self.trained.items():
            self.values[name].lerp_(parameter.detach().float(), 1 - self.momentum)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with the average for its weights; as before when it ends."""
        own = {name: parameter.data for name, parameter in self.trained.items()}
        try:
            for name, parameter in self.trained.items():
                parameter.data = self.values[name].to(parameter.dtype)
            yield
        finally:
            for name, parameter in self.trained.items():
                parameter.data = own[name]

    def share(self) -> None:
        """Gives every rank the first one's average (a collective), as DDP gives them its weights."""
        for value in self.values.values():
            torch.distributed.broadcast(value, src=0)

    def save(self, folder: str) -> None:
        """Writes the average beside a checkpoint."""
        save_file({name: value.cpu() for name, value in self.values.items()}, Path(folder) / AVERAGE_FILE)

    def load(self, folder: str) -> None:
        """Takes up what `save` wrote, on which a resumed run depends.

        Raises:
            ValueError: If the checkpoint has none, or one of another model.
        """
        file = Path(folder) / AVERAGE_FILE
        saved = load_file(file) if file.is_file() else {}
        if saved.keys() != self.values.keys():
            raise ValueError(
                f"the checkpoint in {folder!r} has no averaged weights of this run: its objective had no momentum, or "
                "other parts of the model trained"
            )
        for name, value in saved.items():
            self.values[name].copy_(value)


def averaged_weights(model: nn.Module, features: tuple[Feature, ...], sharded: bool) -> AveragedWeights | None:
    """The average that some features are measured with; None where none is.

    Raises:
        ValueError: If two of them want it to move at another speed, or ranks hold parts of the model.
    """
    speeds = sorted({feature.momentum for feature in features if feature.momentum is not None})
    if len(speeds) > 1:
        raise ValueError(f"parts of the objective want momentum {speeds[0]} and {speeds[1]}: give them the same")
    if speeds and sharded:
        raise ValueError(
            "momentum keeps a second copy of what trains, which deepspeed may hold in parts: use DDP, or leave "
            "momentum out"
        )
    return AveragedWeights(model, speeds[0]) if speeds else None


def with_averaged(trainer: AlignTrainer, batch: Batch, policy: Signals) -> Signals:
    """The signals of the policy and those features that are measured with averaged weights."""
    features = tuple(feature for feature in trainer.objective.needs.features if feature.momentum is not None)
    if trainer.averaged is None or batch.is_idle:
        return policy
    views = {feature.view for feature in features}
    alone = replace(batch, branches=tuple(branch for branch in batch.branches if branch.view in views))
    with torch.no_grad(), trainer.averaged.in_place(), trainer.accelerator.autocast():
        found, _ = measure(trainer.model, alone, features=features, scored=(), options=trainer.options)
    return replace(
        policy,
        features={**policy.features, **found.features},
        host_feature_rows={**policy.host_feature_rows, **found.host_feature_rows},
        host_feature_ids={**policy.host_feature_ids, **found.host_feature_ids},
    )
