"""One optimiser step's worth of batches: what each term is divided by, over micro-batches and ranks.

A mean of ragged micro-batches is not the mean of the big batch. So terms are sums, and their normalisers are known
before anything is measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from accelerate.utils import gather_object
from torch import Tensor

from mllm_align.contract import Batch, Objective, Outcome, Ragged, Signals
from mllm_align.trainers.heads import as_module, mode


@dataclass(frozen=True)
class Window:
    """Global normalisers of one optimiser step.

    Attributes:
        counts: Per term name, the sum of its counts over the window and all ranks.
        tokens: Tokens that the policy reads, over the window and all ranks.
        rows: Rows, likewise.
    """

    counts: Mapping[str, float] = field(default_factory=dict)
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
            shares.append(term.weight * term.sum / max(self.counts[term.name], 1.0))
        return torch.stack(shares).sum() if shares else torch.zeros(())


def plan_window(objective: Objective, batches: Iterable[Batch]) -> Window:
    """The normalisers of some micro-batches, summed over all ranks (a collective: every rank must call it)."""
    counts: dict[str, float] = defaultdict(float)
    tokens = rows = 0
    for batch in batches:
        for name, count in term_counts(objective, batch).items():
            counts[name] += count
        tokens += count_tokens(batch)
        rows += len(batch)
    total: dict[str, float] = defaultdict(float)
    ranks = gather_object([(dict(counts), tokens, rows)])
    for rank_counts, _, _ in ranks:
        for name, count in rank_counts.items():
            total[name] += count
    return Window(dict(total), sum(rank[1] for rank in ranks), sum(rank[2] for rank in ranks))


def term_counts(objective: Objective, batch: Batch) -> dict[str, float]:
    """Per term name its count on one batch, by asking the objective with zeros in place of every measured value.

    An objective that is a module is asked in evaluation mode, so that a queue it keeps is not filled with zeros.

    Raises:
        ValueError: If two terms have the same name.
    """
    if not batch.branches:
        return {}
    module = as_module(objective)
    own = next(module.parameters(), None) if module is not None else None
    zeros = zero_signals(batch, objective.needs.tokens, device=own.device if own is not None else "cpu")
    with torch.no_grad(), torch.random.fork_rng(enabled=module is not None), mode(objective, training=False):
        outcome = objective(zeros, zeros if objective.needs.reference else None)
    counts: dict[str, float] = {}
    for term in outcome.terms:
        if term.name in counts:
            raise ValueError(f"two terms are called {term.name!r}: give each part of the objective a name of its own")
        counts[term.name] = float(term.count)
    return counts


def zero_signals(batch: Batch, tokens: bool = False, device: torch.device | str = "cpu") -> Signals:
    """What measuring `batch` would give, with every log-probability zero.

    Args:
        batch: Only its shapes are read.
        tokens: Whether per-token log-probabilities are there.
        device: Of the signals.
    """
    counts = {view: batch.num_tokens(view).to(device) for view in batch.views}
    ragged = {}
    if tokens:
        for view, count in counts.items():
            row = torch.repeat_interleave(torch.arange(len(batch), device=device), count)
            ragged[view] = Ragged(torch.zeros(row.numel(), device=device), row)
    return Signals(
        logps={view: torch.zeros(len(batch), device=device) for view in counts},
        num_tokens=counts,
        token_logps=ragged,
        sources=batch.sources,
    )


def count_tokens(batch: Batch) -> int:
    """Prompt tokens (image tokens included, shared prompts once) and response tokens of a batch."""
    prompts = sum(prefix.input_ids.numel() for prefix in batch.prefixes)
    return prompts + sum(branch.token_ids.numel() for branch in batch.branches)
