"""Our engine with what lmms-eval asks beyond a greedy answer: sampling, beams, and losses of choices."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mllm_align.signals import measure
from mllm_align_eval.engine import ModelEngine, Request
from mllm_align_eval.lmms_bridge.decoding import Decoding


class DecodingEngine(ModelEngine):
    """A `ModelEngine` that generates by a task's settings; arguments are those of `ModelEngine`."""

    def answer(self, requests: Sequence[Request], decoding: Decoding) -> list[str]:
        """Per request the answer, up to the first of the decoding's stops.

        Greedy ones are those of `ModelEngine.generate`, so they are what `mllm-align eval` gets.

        Raises:
            ValueError: If some requests show images and others none, or one cannot be rendered.
        """
        answers = self.generate(requests, decoding.max_new_tokens, dict(decoding.settings))
        return [decoding.cut(generated.text) for generated in answers]

    @torch.no_grad()
    def choice_losses(self, requests: Sequence[Request]) -> list[list[tuple[float, bool]]]:
        """Per request and choice the mean negative log-probability of its tokens, and whether it is what is generated.

        The end-of-turn token is one of them. lmms-eval's own models give such means (not sums), and its tasks take the
        choice of the least.

        Raises:
            ValueError: As `answer`.
        """
        rows = [(request, choice) for request in requests for choice in request.choices]
        batch, view = self._collate(rows)
        signals, _ = measure(self.model, batch, options=self.options)
        losses = -signals.logps[view].double() / signals.num_tokens[view]
        longest = int(signals.num_tokens[view].max())
        texts = [generated.text for generated in self.generate(requests, longest)]
        flat = iter(losses.tolist())
        return [
            [(next(flat), text == choice.strip()) for choice in request.choices]
            for request, text in zip(requests, texts, strict=True)
        ]
