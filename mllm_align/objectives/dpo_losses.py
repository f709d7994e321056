"""The losses of `DPO` and its variants as free functions of the two scores of a row, and a table of them.

A score is a log-ratio log pi - log pi_ref, or for a loss without reference a log-probability; over tokens summed, or
averaged where the table says so. In the formulas c is that of the chosen response, r that of the rejected one, s the
logistic function. Left out, for what they would have to read: AOT sorts the margins of the global batch, LD-DPO weighs
tokens by their place, WPO wants the model's own distribution at each token, AlphaPO and other f-divergences raise
probabilities of whole responses to powers, which float32 does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LossType = Literal[
    "sigmoid",
    "robust",
    "hinge",
    "ipo",
    "sigmoid_norm",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
    "simpo",
]


class Variant(NamedTuple):
    """A loss, the options that it reads beside beta, and what its scores are."""

    loss: Callable[..., Tensor]
    options: tuple[str, ...] = ()
    averaged: bool = False
    reference: bool = True


def logistic(margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-(1-e) log s(margin) - e log s(-margin)."""
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def sigmoid(c: Tensor, r: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """-(1-e) log s(beta (c - r)) - e log s(-beta (c - r))."""
    return logistic(beta * (c - r), label_smoothing)


def robust(c: Tensor, r: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """[-(1-e) log s(beta (c - r)) + e log s(-beta (c - r))] / (1 - 2e), unbiased where a share e is flipped."""
    margin = beta * (c - r)
    kept, flipped = -F.logsigmoid(margin), -F.logsigmoid(-margin)
    return ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def hinge(c: Tensor, r: Tensor, *, beta: float) -> Tensor:
    """max(0, 1 - beta (c - r))."""
    return torch.relu(1 - beta * (c - r))


def ipo(c: Tensor, r: Tensor, *, beta: float) -> Tensor:
    """(c - r - 1 / (2 beta))^2, c and r per token."""
    return (c - r - 1 / (2 * beta)) ** 2


def sigmoid_norm(c: Tensor, r: Tensor, *, beta: float) -> Tensor:
    """-log s(beta (c - r)), c and r per token."""
    return logistic(beta * (c - r))


def exo_pair(c: Tensor, r: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """KL of (s(beta (c - r)), s(beta (r - c))) from (1 - e, e)."""
    margin = beta * (c - r)
    right = torch.sigmoid(margin) * (F.logsigmoid(margin) - math.log1p(-label_smoothing))
    wrong = torch.sigmoid(-margin) * (F.logsigmoid(-margin) - math.log(label_smoothing))
    return right + wrong


def nca_pair(c: Tensor, r: Tensor, *, beta: float) -> Tensor:
    """-log s(beta c) - (log s(-beta c) + log s(-beta r)) / 2."""
    return logistic(beta * c) + (logistic(-beta * c) + logistic(-beta * r)) / 2


def bco_pair(c: Tensor, r: Tensor, *, beta: float) -> Tensor:
    """-log s(beta c) - log s(-beta r)."""
    return logistic(beta * c) + logistic(-beta * r)


def sppo_hard(c: Tensor, r: Tensor, *, beta: float) -> Tensor:
    """(c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2."""
    return (c - 1 / (2 * beta)) ** 2 + (r + 1 / (2 * beta)) ** 2


def apo_zero(c: Tensor, r: Tensor, *, beta: float) -> Tensor:
    """1 - s(beta c) + s(beta r)."""
    return torch.sigmoid(-beta * c) + torch.sigmoid(beta * r)


def apo_down(c: Tensor, r: Tensor, *, beta: float) -> Tensor:
    """s(beta c) + 1 - s(beta (c - r))."""
    return torch.sigmoid(beta * c) + torch.sigmoid(-beta * (c - r))


def discopop(c: Tensor, r: Tensor, *, beta: float, discopop_tau: float) -> Tensor:
    """-(1 - m) log s(x) + m exp(-x) with x = beta (c - r) and m = s(x / tau).

    At x = 0 and tau .05 it rises with x, as published: a run starts by lowering the margin.
    """
    x = beta * (c - r)
    # As one exponential: apart, exp(-x) overflows where m is 0.
    exponential = torch.exp(F.logsigmoid(x / discopop_tau) - x)
    return torch.sigmoid(-x / discopop_tau) * logistic(x) + exponential


def simpo(c: Tensor, r: Tensor, *, beta: float, gamma: float, label_smoothing: float) -> Tensor:
    """-(1-e) log s(x) - e log s(-x) with x = beta (c - r) - gamma, c and r log-probabilities per token."""
    return logistic(beta * (c - r) - gamma, label_smoothing)


VARIANTS: dict[str, Variant] = {
    "sigmoid": Variant(sigmoid, ("label_smoothing",)),
    "robust": Variant(robust, ("label_smoothing",)),
    "hinge": Variant(hinge),
    "ipo": Variant(ipo, averaged=True),
    "sigmoid_norm": Variant(sigmoid_norm, averaged=True),
    "exo_pair": Variant(exo_pair, ("label_smoothing",)),
    "nca_pair": Variant(nca_pair),
    "bco_pair": Variant(bco_pair),
    "sppo_hard": Variant(sppo_hard),
    "apo_zero": Variant(apo_zero),
    "apo_down": Variant(apo_down),
    "discopop": Variant(discopop, ("discopop_tau",)),
    "simpo": Variant(simpo, ("gamma", "label_smoothing"), averaged=True, reference=False),
}


def dpo_loss(chosen: Tensor, rejected: Tensor, *, loss_type: LossType, beta: float, **options: float) -> Tensor:
    """Loss of a preference from the scores of its two responses.

    Args:
        chosen: Any shape; what the variant's table entry says: log-ratios or log-probabilities, summed or averaged.
        rejected: In the same shape.
        loss_type: A key of `VARIANTS`.
        beta: Scale of the scores; for "ipo" the tau of its paper.
        **options: Those that the variant reads: `label_smoothing`, `gamma`, `discopop_tau`.

    Returns:
        The loss of each entry, in the shape of the scores.

    Example:
        >>> chosen = torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> rejected = torch.tensor([0.0, -2.0], dtype=torch.float64)
        >>> dpo_loss(chosen, rejected, loss_type="sigmoid", beta=0.1, label_smoothing=0.0)
        tensor([0.6931, 0.5544], dtype=torch.float64)
        >>> dpo_loss(chosen, rejected, loss_type="sppo_hard", beta=0.1)
        tensor([50., 25.], dtype=torch.float64)
    """
    return VARIANTS[loss_type].loss(chosen, rejected, beta=beta, **options)
