"""A vision-language model without the image: which of two responses it finds more likely."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mllm_align.contract import Needs, View
from mllm_align.data.collator import AlignCollator
from mllm_align.data.loading import undecoded
from mllm_align.data.schema import DataError, parse_row
from mllm_align.families import family_of, unwrap
from mllm_align.signals import measure

CHOSEN, REJECTED = View(None, "chosen"), View(None, "rejected")
SUMMED, PER_TOKEN = "the model without the image", "the model, per token"


@torch.no_grad()
def scores_without_image(
    model: Any, processor: Any, rows: Any, batch_size: int = 16, progress: bool = True
) -> dict[str, list[float]]:
    """For each row whether log p(chosen) is above log p(rejected) where the prompt has no image.

    Args:
        model: In evaluation mode; its active adapter is asked.
        processor: Its processor.
        rows: Canonical rows; images are not read.
        batch_size: Rows scored together.
        progress: Whether to show a bar.

    Returns:
        Two probes, by the sum over tokens and by the mean: 1.0, 0.0, or 0.5 where both are the same. NaN for a row
        that cannot be used or has no rejected response.
    """
    family = family_of(unwrap(model))
    needs = Needs(views=(CHOSEN, REJECTED))
    collator = AlignCollator(processor, lambda source: needs, family.image_keys, family.token_keys)
    usable = list(_usable(undecoded(rows)))
    found = {name: [float("nan")] * len(rows) for name in (SUMMED, PER_TOKEN)}
    usable.sort(key=lambda item: len(str(item[1].get("prompt"))))
    for start in tqdm(range(0, len(usable), batch_size), "asking without images", disable=not progress):
        part = usable[start : start + batch_size]
        batch = collator([row for _, row in part])["batch"].to(unwrap(model).device)
        signals, _ = measure(model, batch)
        chosen, rejected = (signals.logps[view].double() for view in needs.views)
        lengths = [signals.num_tokens[view].clamp(min=1) for view in needs.views]
        for name, margin in (
            (SUMMED, chosen - rejected),
            (PER_TOKEN, chosen / lengths[0] - rejected / lengths[1]),
        ):
            for (number, _), value in zip(part, _verdicts(margin), strict=True):
                found[name][number] = value
    return found


def _usable(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, raw in enumerate(rows):
        try:
            row = parse_row(raw, number)
        except DataError:
            continue  # it is counted where the texts are read
        if {"chosen", "rejected"} <= set(row.responses):
            yield number, raw


def _verdicts(margin: Tensor) -> list[float]:
    return ((margin.sign() + 1) / 2).tolist()
