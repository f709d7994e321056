"""Running means of named numbers, weighted by rows, over steps and ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from accelerate.utils import gather_object
from torch import Tensor

from mllm_align.contract import Batch, Outcome, Signals


class Averages:
    """Sums and counts per name. Sums stay on their device until they are read, so that adding never waits for it."""

    def __init__(self) -> None:
        """Without entries."""
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor | float] = {}

    def add(self, name: str, total: Tensor, count: Tensor | float) -> None:
        """Adds a sum over `count` entries."""
        # float64: a sum over an evaluation set must not depend on how it was cut into batches.
        total = total.detach().double()
        weight = count if isinstance(count, int | float) else count.detach().double()
        if name in self._sums:
            total = total + self._sums[name]
            weight = weight + self._counts[name]
        self._sums[name], self._counts[name] = total, weight

    def add_outcome(self, outcome: Outcome, num_rows: int) -> None:
        """Adds an outcome's terms (as `loss/NAME`) and metrics; a 0-d metric counts once per row of the batch."""
        for term in outcome.terms:
            self.add(f"loss/{term.name}", term.sum, term.count)
        for name, value in outcome.metrics.items():
            if value.dim() == 0:
                self.add(name, value.double() * num_rows, num_rows)
            else:
                self.add(name, value.double().sum(), value.numel())

    def add_logps(self, policy: Signals, outcome: Outcome) -> None:
        """Adds the log-probability of each view, over the rows that have it, where the outcome tells nothing of it."""
        for view, logps in policy.logps.items():
            name = f"logps/{view}"
            if not any(told == name or told.endswith(f"/{name}") for told in outcome.metrics):
                self.add(name, logps.double().sum(), policy.has(view).sum())

    def totals(self) -> dict[str, tuple[float, float]]:
        """Per name (sum, count) over all ranks (a collective), names in order of first use."""
        names = list(self._sums)
        own = {}
        if names:
            device = self._sums[names[0]].device
            sums = torch.stack([self._sums[name].to(device) for name in names]).tolist()
            counts = torch.stack(
                [torch.as_tensor(self._counts[name], dtype=torch.float64, device=device) for name in names]
            ).tolist()
            own = dict(zip(names, zip(sums, counts, strict=True), strict=True))
        merged: dict[str, tuple[float, float]] = {}
        for rank in gather_object([own]):
            for name, (total, count) in rank.items():
                before = merged.get(name, (0.0, 0.0))
                merged[name] = (before[0] + total, before[1] + count)
        return merged

    def reset(self) -> None:
        """Forgets everything."""
        self._sums.clear()
        self._counts.clear()


def with_lost_objects(outcome: Outcome, batch: Batch) -> Outcome:
    """The outcome, and the metric "objects/lost": of each object of the batch, regions or not, whether it is none.

    Objects are lost that cover nothing of what the model is shown: without area, outside their image, cropped away.
    """
    lost, kept = batch.num_lost_regions, sum(map(len, batch.regions.values()))
    if not lost + kept:
        return outcome
    told = torch.cat([torch.ones(lost), torch.zeros(kept)])
    return replace(outcome, metrics={**outcome.metrics, "objects/lost": told})


def means(totals: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Sum over count per name; names without an entry are left out."""
    return {name: total / count for name, (total, count) in totals.items() if count > 0}


def weighted_loss(totals: Mapping[str, tuple[float, float]], weights: Mapping[str, float]) -> float:
    """The loss over everything that was added: the sum over terms of weight x sum / count."""
    per_term = means({name: totals[f"loss/{name}"] for name in weights if f"loss/{name}" in totals})
    return sum(weights[name] * value for name, value in per_term.items())
