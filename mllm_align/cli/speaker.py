"""A vision-language model as what the makers of data ask: a `Speaker`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import PeftModel
from torch import nn

from mllm_align.data.errors import DataError
from mllm_align.data.mine.speaking import Ask
from mllm_align_eval.arms import fingerprint
from mllm_align_eval.engine import ModelEngine, Request


class ModelSpeaker:
    """Greedy answers of a model to any number of asks, with pictures and without.

    Asks with pictures and without go into batches of their own, those of similar length together, so the answers to
    the same asks are the same.

    Args:
        model: The model, wrapped in adapters or not; its active adapter speaks.
        processor: Its processor.
        identity: Tells it apart from every other; by default of its weights.
        batch_size: Asks that are answered together.

    Raises:
        ValueError: If `batch_size` is less than 1.
    """

    def __init__(self, model: nn.Module, processor: Any, identity: str | None = None, batch_size: int = 16) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.engine = ModelEngine(model, processor)
        self.batch_size = batch_size
        active = model.active_adapter if isinstance(model, PeftModel) else None
        self.identity = identity or f"{type(model).__name__} {fingerprint(model, active)[:16]}, greedy"

    def __call__(self, asks: Sequence[Ask], max_new_tokens: int) -> list[str]:
        """The answer to each.

        Raises:
            DataError: If the model's processor refuses a prompt or a picture.
        """
        order = sorted(range(len(asks)), key=lambda n: (bool(asks[n].images), _length(asks[n]), n))
        answers = [""] * len(asks)
        batch: list[int] = []
        for number in order:
            if batch and (len(batch) == self.batch_size or bool(asks[batch[0]].images) != bool(asks[number].images)):
                self._answer(batch, asks, max_new_tokens, answers)
                batch = []
            batch.append(number)
        if batch:
            self._answer(batch, asks, max_new_tokens, answers)
        return answers

    def _answer(self, numbers: Sequence[int], asks: Sequence[Ask], max_new_tokens: int, answers: list[str]) -> None:
        requests = [
            Request(ask.images, ask.prompt, (), system=ask.system, start=ask.start)
            for ask in (asks[number] for number in numbers)
        ]
        try:
            found = self.engine.generate(requests, max_new_tokens)
        except ValueError as error:
            raise DataError(str(error)) from error
        for number, generated in zip(numbers, found, strict=True):
            answers[number] = generated.text


def _length(ask: Ask) -> int:
    return len(ask.system) + len(ask.prompt) + len(ask.start)
