"""What an objective is, and the terms that it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from mllm_align.contract.needs import Needs
from mllm_align.contract.signals import Signals


class Term(NamedTuple):
    """A loss as a sum and its normaliser (rows, tokens or anchors), both 0-d.

    The trainer divides `sum` by the global count of the whole accumulation window over all ranks. `count` depends on
    which rows and tokens are there, never on measured values, so that it is known before anything is measured.
    """

    name: str
    weight: float
    sum: Tensor
    count: Tensor


@dataclass(frozen=True)
class Outcome:
    """The terms of one batch and the named numbers worth logging.

    `metrics` holds detached tensors with one number per row that it applies to (any shape, averaged over all entries
    of the logging window) or 0-d tensors.
    """

    terms: tuple[Term, ...]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def loss(self) -> Tensor:
        """0-d: the sum of weight x sum / count on this batch; a term without rows contributes zero."""
        parts = [term.weight * term.sum / term.count.clamp(min=1) for term in self.terms]
        return torch.stack(parts).sum()


@runtime_checkable
class Objective(Protocol):
    """Declaration and maths. May be an `nn.Module`: its parameters are then trained and checkpointed with the run."""

    @property
    def needs(self) -> Needs:
        """What must be measured."""
        ...

    def __call__(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The terms and metrics of one batch; `reference` is None where `needs.reference` is False."""
        ...


def needs_for(objective: Objective, source: str) -> Needs:
    """What the rows of one source need: the objective's own answer where it tells sources apart, else its needs."""
    ask: Callable[[str], Needs] | None = getattr(objective, "needs_for", None)
    return ask(source) if ask is not None else objective.needs
