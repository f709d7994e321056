"""Signals of one row with given log-ratios, and what an objective makes of them: for the oracles of preference.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mllm_align.contract import Ragged, Signals, View

CHOSEN, REJECTED = View("image", "chosen"), View("image", "rejected")
CONTRAST_CHOSEN, CONTRAST_REJECTED = View("contrast_image", "chosen"), View("contrast_image", "rejected")
NONE_CHOSEN, NONE_REJECTED = View(None, "chosen"), View(None, "rejected")


def softplus(x: float) -> float:
    """-log sigmoid(-x), in plain floats."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def lost(x: float) -> float:
    """-log sigmoid(x)."""
    return softplus(-x)


def row_of(values: Mapping[View, float], tokens: int = 4) -> Signals:
    """One row with these sums."""
    return Signals(
        {view: torch.tensor([value], dtype=torch.float64, requires_grad=True) for view, value in values.items()},
        {view: torch.tensor([tokens]) for view in values},
    )


def at(objective: Any, values: Mapping[View, float], tokens: int = 4) -> tuple[float, dict[View, float]]:
    """Loss, and gradient with respect to each view, where the log-ratios have these values."""
    policy = row_of(values, tokens)
    reference = row_of(dict.fromkeys(values, 0.0), tokens) if objective.needs.reference else None
    loss = objective(policy, reference).loss
    loss.backward()
    return loss.item(), {view: 0.0 if leaf.grad is None else leaf.grad.item() for view, leaf in policy.logps.items()}


def ratios_of(policy: Signals, reference: Signals, row: int) -> dict[View, float]:
    """The log-ratios of one row, in plain floats."""
    return {view: policy.logps[view][row].item() - reference.logps[view][row].item() for view in policy.logps}


def tokens_of(values: Mapping[View, Sequence[Sequence[float]]], ids: Mapping[str, Sequence[Sequence[int]]]) -> Signals:
    """Per view the token log-probabilities of each row, and per response the ids of its tokens."""
    flat = {view: [value for row in rows for value in row] for view, rows in values.items()}
    leaves = {view: torch.tensor(own, dtype=torch.float64, requires_grad=True) for view, own in flat.items()}
    counts = {view: torch.tensor([len(row) for row in rows]) for view, rows in values.items()}
    row = {view: torch.repeat_interleave(torch.arange(len(own)), own) for view, own in counts.items()}
    sums = {
        view: torch.zeros(len(counts[view]), dtype=torch.float64).index_add(0, row[view], leaf)
        for view, leaf in leaves.items()
    }
    return Signals(
        sums,
        counts,
        {view: Ragged(leaf, row[view]) for view, leaf in leaves.items()},
        host_token_ids={
            view: tuple(tuple(own) if kept else () for own, kept in zip(ids[view.response], rows, strict=True))
            for view, rows in values.items()
        },
    )
