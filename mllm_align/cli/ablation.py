"""How much worse a model predicts responses with a further vision encoder switched off."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mllm_align.contract import Batch, Needs, View
from mllm_align.data.collator import AlignCollator
from mllm_align.families import family_of, inner, unwrap
from mllm_align.signals import measure
from mllm_align.vision.mixed_vision import MixedVision, mixed_of, switched_off

CHOSEN = View("image", "chosen")


class Change(NamedTuple):
    """What became of the next-token loss of the chosen responses.

    Attributes:
        loss: Mean over tokens, in nats.
        change: How much more that is than with everything switched on.
        error: Standard error of the change over rows, which are what was drawn.
        rows_worse: Part of the rows whose loss rose.
    """

    loss: float
    change: float
    error: float
    rows_worse: float


def batches(model: Any, processor: Any, rows: Any, batch_size: int) -> Iterator[Batch]:
    """Rows as the model reads them, with their image and chosen response, on its device.

    Raises:
        DataError: If a row cannot be used.
    """
    hf = unwrap(model)
    family, needs = family_of(hf), Needs(views=(CHOSEN,))
    collator = AlignCollator(processor, lambda source: needs, family.image_keys, family.token_keys)
    for start in range(0, len(rows), batch_size):
        chosen = [rows[number] for number in range(start, min(start + batch_size, len(rows)))]
        yield collator(chosen)["batch"].to(hf.device)


class Ablation:
    """Adds up over batches the losses with everything on, with each further encoder off, and without the mixer.

    Args:
        model: With a mixer, in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        mixed = mixed_of(inner(unwrap(model)))
        if mixed is None:
            raise ValueError("the model has no mixer: there is no encoder to switch off")
        self.mixed: MixedVision = mixed
        # None is the whole mixer, which some cannot do without: prompts are laid out for their tokens.
        whole: list[Sequence[int] | None] = [None] if mixed.kind.keeps_tokens else []
        self.off: list[Sequence[int] | None] = [[], *([number] for number in range(len(mixed.seeing))), *whole]
        self._losses: list[list[Tensor]] = [[] for _ in self.off]
        self._counts: list[Tensor] = []

    @torch.no_grad()
    def add(self, batch: Batch) -> None:
        """One more batch, measured once for each."""
        for off, losses in zip(self.off, self._losses, strict=True):
            with switched_off(self.mixed, off) if off != [] else nullcontext():
                signals, _ = measure(self.model, batch)
            losses.append(-signals.logps[CHOSEN].double().cpu())
        self._counts.append(signals.num_tokens[CHOSEN].double().cpu())

    def changes(self) -> dict[str, Change]:
        """By what is switched off: "nothing", "encoder 1", ..., "mixer"."""
        counts, losses = torch.cat(self._counts), [torch.cat(each) for each in self._losses]
        names = ["nothing" if off == [] else f"encoder {off[0] + 1}" if off else "mixer" for off in self.off]
        return {name: changed(own, losses[0], counts) for name, own in zip(names, losses, strict=True)}


def changed(losses: Tensor, before: Tensor, counts: Tensor) -> Change:
    """Two losses of the same rows compared.

    Args:
        losses: (N,) sums over tokens.
        before: (N,) the same before.
        counts: (N,) tokens.
    """
    total, rows = counts.sum(), len(counts)
    change = (losses - before).sum() / total
    # Of a ratio of sums over rows, linearised.
    rest = losses - before - change * counts
    error = (rest.square().sum() * rows / (rows - 1)).sqrt() / total if rows > 1 else torch.tensor(math.nan)
    worse = (losses > before).double().mean()
    return Change((losses.sum() / total).item(), change.item(), error.item(), worse.item())
