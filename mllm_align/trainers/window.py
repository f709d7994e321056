"""One optimiser step's worth of batches: what each term is divided by, over micro-batches and ranks.

A mean of ragged micro-batches is not the mean of the big batch. So terms are sums, and their normalisers are known
before anything is measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mllm_align.contract import Batch, Feature, Objective, Outcome, Ragged, Signals, View
from mllm_align.families.base import to_device
from mllm_align.signals.features import feature_ids, image_feature_rows, scored_views, text_feature_rows
from mllm_align.signals.packing import send
from mllm_align.trainers.gather import gather_on_host, over_ranks
from mllm_align.trainers.heads import as_module, mode


@dataclass(frozen=True)
class Window:
    """Global normalisers of one optimiser step.

    Attributes:
        counts: Per term name, the sum of its counts over the window and all ranks; where the objective counts on its
            own device a 0-d tensor there, for which nobody waits.
        tokens: Tokens that the policy reads, over the window and all ranks.
        rows: Rows, likewise.
    """

    counts: Mapping[str, float | Tensor] = field(default_factory=dict)
    tokens: int = 0
    rows: int = 0

    def loss(self, outcome: Outcome) -> Tensor:
        """0-d: this batch's share of the window's loss; the shares of all batches and ranks add up to it.

        Raises:
            ValueError: If a term was not announced, so that its normaliser is unknown.
        """
        shares = []
        for term in outcome.terms:
            if term.name not in self.counts:
                raise ValueError(
                    f"term {term.name!r} appeared with values but not with zeros in their place: which terms an "
                    "objective returns must not depend on what was measured"
                )
            count = self.counts[term.name]
            divisor = max(count, 1.0) if isinstance(count, float | int) else count.clamp(min=1.0)
            shares.append(term.weight * term.sum / divisor)
        return torch.stack(shares).sum() if shares else torch.zeros(())


def plan_window(objective: Objective, batches: Iterable[Batch], width: int = 1, *, together: bool = False) -> Window:
    """The normalisers of some micro-batches, summed over all ranks (a collective: every rank must call it).

    Args:
        objective: Its terms.
        batches: The micro-batches of this rank.
        width: Of features.
        together: Whether each rank asks the objective about the rows of all ranks; every rank then counts all.
    """
    counts: dict[str, Any] = defaultdict(float)
    tokens = rows = 0
    for batch in batches:
        for name, count in term_counts(objective, batch, width, together=together).items():
            counts[name] = counts[name] + count
        tokens += count_tokens(batch)
        rows += len(batch)
    there = {name: count for name, count in counts.items() if isinstance(count, Tensor)}
    here = {name: count for name, count in counts.items() if name not in there}
    total: dict[str, Any] = defaultdict(float)
    ranks = gather_on_host((here, tokens, rows, list(there)))
    for rank in ranks:
        for name, count in rank[0].items():
            total[name] += count
    names = sorted({name for rank in ranks for name in rank[3]})
    if names:
        total |= _over_ranks(there, names, next(_parameters(objective)).device)
    return Window(dict(total), sum(rank[1] for rank in ranks), sum(rank[2] for rank in ranks))


def _over_ranks(counts: Mapping[str, Tensor], names: Sequence[str], device: Any) -> dict[str, Tensor]:
    """What is counted on the device, summed there (a collective): a rank without such rows has no count of a term."""
    summed = torch.stack([counts[name] if name in counts else torch.zeros((), device=device) for name in names])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(summed)
    return dict(zip(names, summed.unbind(), strict=True))


def _parameters(objective: Objective) -> Iterator[Tensor]:
    module = as_module(objective)
    return iter(()) if module is None else module.parameters()


def term_counts(
    objective: Objective, batch: Batch, width: int = 1, *, together: bool = False
) -> dict[str, float | Tensor]:
    """Per term name its count on one batch, by asking the objective with zeros in place of every measured value.

    An objective that is a module is asked in evaluation mode, so that a queue it keeps is not filled with zeros. One
    with parameters counts where they are, and its counts stay there: to read them would be to wait for the last step.

    Raises:
        ValueError: If two terms have the same name.
    """
    if batch.is_idle and not together:
        return {}
    module = as_module(objective)
    own = next(_parameters(objective), None)
    device = own.device if own is not None else "cpu"
    needs = objective.needs
    zeros = zero_signals(batch, needs.tokens, device, needs.features, width, scored_views(needs))
    if together:
        zeros = over_ranks(zeros, device, zeros=True)
    with torch.no_grad(), torch.random.fork_rng(enabled=module is not None), mode(objective, training=False):
        outcome = objective(zeros, zeros if needs.reference else None)
    counts: dict[str, float | Tensor] = {}
    for term in outcome.terms:
        if term.name in counts:
            raise ValueError(f"two terms are called {term.name!r}: give each part of the objective a name of its own")
        counts[term.name] = float(term.count) if own is None else to_device(term.count, device).float()
    return counts


def zero_signals(
    batch: Batch,
    tokens: bool = False,
    device: torch.device | str = "cpu",
    features: Sequence[Feature] = (),
    width: int = 1,
    scored: Collection[View] | None = None,
) -> Signals:
    """What measuring `batch` would give, with every value zero.

    Args:
        batch: Only its shapes are read.
        tokens: Whether per-token log-probabilities and the tokens' ids are there.
        device: Of the signals.
        features: Features that are there.
        width: Of the features.
        scored: Views whose log-probabilities are there; None for all.
    """
    told = {view: batch.num_tokens(view) for view in batch.views}
    host = {view: count if scored is None or view in scored else count * 0 for view, count in told.items()}
    host_num_tokens = {view: tuple(count.tolist()) for view, count in host.items()}
    found = _zero_features(batch, features, width, device)
    ids = {feature.name: feature_ids(batch, feature) for feature in features if feature.name in found}
    counts = {view: to_device(count, device) for view, count in host.items()}
    ragged = {}
    if tokens:
        for view, own in host_num_tokens.items():
            row = send(np.repeat(np.arange(len(batch)), own), device)
            ragged[view] = Ragged(torch.zeros(row.numel(), device=device), row)
    return Signals(
        logps={view: torch.zeros(len(batch), device=device) for view in counts},
        num_tokens=counts,
        token_logps=ragged,
        features={name: ragged for name, (ragged, _) in found.items()},
        sources=batch.sources,
        row_ids=batch.row_ids,
        regions=batch.regions,
        host_num_tokens=host_num_tokens,
        host_feature_rows={name: tuple(rows) for name, (_, rows) in found.items()},
        host_feature_ids={name: tuple(own) for name, own in ids.items() if own},
        host_token_ids=batch.token_ids(host_num_tokens) if tokens else {},
    )


def _zero_features(
    batch: Batch, features: Sequence[Feature], width: int, device: torch.device | str
) -> dict[str, tuple[Ragged, list[int]]]:
    found = {}
    for feature in features:
        view = feature.view
        rows = image_feature_rows(batch, feature) if view is None else text_feature_rows(batch, feature, view)
        if rows:
            taught = batch.teacher_features.get(feature.name)
            values = torch.zeros(len(rows), width if taught is None else taught.shape[1], device=device)
            found[feature.name] = Ragged(values, send(np.array(rows), device)), rows
    return found


def count_tokens(batch: Batch) -> int:
    """Prompt tokens (image tokens included, shared prompts once) and response tokens of a batch, texts of regions
    included."""
    prompts = sum(prefix.input_ids.numel() for prefix in batch.prefixes)
    return prompts + sum(each.token_ids.numel() for each in (*batch.branches, *batch.phrases))
