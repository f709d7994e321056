"""A preference between two views as data: what rDPO, mDPO, S-VCO and the image term are tables of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mllm_align.contract import Outcome, Signals, Term, View
from mllm_align.objectives.preference import log_ratios, rows_with


class Comparison(NamedTuple):
    """That `better` should gain more over the reference than `worse`, or more than a number does (an anchor).

    Its loss is -log sigmoid(beta [r(better) - r(worse)]), times the weight; r is the log-ratio of a view.
    """

    name: str
    better: View
    worse: View | float
    beta: float
    weight: float = 1.0


def preference_loss(better: Tensor, worse: Tensor | float, *, beta: float) -> Tensor:
    """-log sigmoid(beta (better - worse)), the loss of every pair-wise preference here.

    Args:
        better: Log-ratios log pi - log pi_ref, any shape.
        worse: Those of what should gain less, or one number for all.
        beta: Scale of the difference.

    Returns:
        In the shape of `better`: log 2 where both are equal, and a gradient of at most beta anywhere.

    Example:
        >>> preference_loss(torch.tensor([0.0, 1.0]), torch.tensor([0.0, -2.0]), beta=0.1)
        tensor([0.6931, 0.5544])
    """
    return -F.logsigmoid(beta * (better - worse))


def switched_on(*comparisons: Comparison) -> tuple[Comparison, ...]:
    """Those of a weight above 0: what is off is not in the loss, and its views are not measured for it."""
    return tuple(each for each in comparisons if each.weight > 0)


def views_of(comparisons: Sequence[Comparison]) -> tuple[View, ...]:
    """The views that are compared, each once."""
    sides = (side for each in comparisons for side in (each.better, each.worse))
    return tuple(dict.fromkeys(side for side in sides if isinstance(side, View)))


def comparison_metrics(margins: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`losses/*`, `margins/*` and `accuracies/*` of named margins, betas included; a tie is not counted as right."""
    own = {name: margin.detach() for name, margin in margins.items()}
    metrics = {f"losses/{name}": -F.logsigmoid(margin) for name, margin in own.items()}
    metrics |= {f"margins/{name}": margin for name, margin in own.items()}
    return metrics | {f"accuracies/{name}": (margin > 0).to(margin.dtype) for name, margin in own.items()}


def compare(name: str, comparisons: Sequence[Comparison], policy: Signals, reference: Signals | None) -> Outcome:
    """The weighted sum of some comparisons.

    Args:
        name: Of the term.
        comparisons: At least one; their names are distinct.
        policy: Signals with every view compared.
        reference: Of the frozen reference, on the same rows.

    Returns:
        One term, the sum over the N rows that have every view compared, with count N. Metrics, (N,) each: per
        comparison `losses/*` (without weight), `margins/*` (beta times the difference of log-ratios), `accuracies/*`;
        and `logps/<response>|<image>`, the policy's sums.
    """
    views = views_of(comparisons)
    rows = rows_with(policy, views)
    ratios = log_ratios(policy, reference, views, rows)
    losses, margins = [], {}
    for each in comparisons:
        better, worse = ratios[each.better], ratios[each.worse] if isinstance(each.worse, View) else each.worse
        losses.append(each.weight * preference_loss(better, worse, beta=each.beta))
        margins[each.name] = each.beta * (better - worse)
    metrics = comparison_metrics(margins)
    metrics |= {f"logps/{view}": policy.logps[view][rows].detach() for view in views}
    count = torch.full((), rows.numel(), device=rows.device)
    return Outcome((Term(name, 1.0, torch.stack(losses).sum(), count),), metrics)
