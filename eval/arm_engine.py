"""One engine for arms whose prompts are laid out by two processors, as a mixer may make another number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from mllm_align.models import is_mixing, stock_processor
from mllm_align_eval.arms import Arm, alike
from mllm_align_eval.engine import Engine, Generated, ModelEngine, Request


class ArmEngine:
    """An `Engine` that asks a model by its own processor while its mixer takes part, and by the base's while not.

    Args:
        mixing: While the mixer takes part.
        stock: While it is off; of the same model.
    """

    def __init__(self, mixing: ModelEngine, stock: ModelEngine) -> None:
        self.mixing, self.stock = mixing, stock

    @property
    def _now(self) -> ModelEngine:
        return self.mixing if is_mixing(self.mixing.model) else self.stock

    def choice_logps(self, requests: Sequence[Request]) -> list[list[float]]:
        """See `ModelEngine`."""
        return self._now.choice_logps(requests)

    def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[Generated]:
        """See `ModelEngine`."""
        return self._now.generate(requests, max_new_tokens)


def engine_of(model: nn.Module, processor: Any, arms: Sequence[Arm]) -> Engine:
    """The engine for some arms of one loaded model."""
    other, remember = stock_processor(model), alike(arms)
    own = ModelEngine(model, processor, remember=remember)
    return own if other is None else ArmEngine(own, ModelEngine(model, other, remember=remember))
