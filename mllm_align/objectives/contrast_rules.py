"""The grid of softmax contrasts: which losses differ in what a positive weighs, and which in what a negative does.

With S the scaled similarities, the loss of anchor i is log Z_i - sum_j P_ij S_ij. P is 1 at the anchor's own key, or
weights over several; Z_i is e^S_ii times a weight plus what the negatives come to. Each named loss is a choice of both
(`Rule`, `contrast`). What is no negative is left out of the sum, not moved down by a constant: at 100 times a cosine
few constants are small enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

# What the losses of both directions count for.
SIDES = {"both": (0.5, 0.5), "image_to_text": (1.0, 0.0), "text_to_image": (0.0, 1.0)}
HARDENED = ("in_batch", "explicit", "all")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Rule:
    """What positives and negatives weigh; the defaults are InfoNCE.

    Args:
        positive_weight: Of the positive in its own denominator: 1 in InfoNCE; 0 is DCL (Yeh et al., 2022,
            https://arxiv.org/abs/2110.06848), whose loss may be below zero.
        beta: Negatives weigh e^(beta S) over the mean of that (HCL, Robinson et al., 2021,
            https://arxiv.org/abs/2010.04592; HN-NCE, Radenovic et al., 2023, https://arxiv.org/abs/2301.02280); the
            gradient goes through the weights.
        tau_plus: Share of the negatives that are taken for unknown positives and subtracted, of HCL.
        hardness: Times the cosine, without a gradient, is added to the similarity of a negative (LLaVE, Lan et al.,
            2025, https://arxiv.org/abs/2503.04812).
        hardness_on: Of which negatives: "explicit", the texts that a row lists; "in_batch", the others; "all".
        margin: A negative whose cosine is above that of the positive by more is taken for a false one and left out
            (UniME, Gu et al., 2025, https://arxiv.org/abs/2504.17432), but not what the anchor's own row lists; None
            leaves none out.
        hardest: Of the negatives that are left, how many count, the most similar ones; None for all.
        sigma: Weights of positives of DCLW, 2 less e^(cosine / sigma) over the mean of that; None for 1.

    Raises:
        ValueError: For a value without a meaning.
    """

    positive_weight: float = 1.0
    beta: float = 0.0
    tau_plus: float = 0.0
    hardness: float = 0.0
    hardness_on: str = "all"
    margin: float | None = None
    hardest: int | None = None
    sigma: float | None = None

    def __post_init__(self) -> None:
        for name in ("positive_weight", "beta", "tau_plus", "hardness", "margin", "sigma"):
            value = getattr(self, name)
            if value is not None and (not _is_number(value) or value < 0):
                raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
        if self.tau_plus >= 1:
            raise ValueError(f"tau_plus is a share and must be below 1, got {self.tau_plus!r}")
        if self.sigma == 0:
            raise ValueError("sigma must be above 0, or nothing for no weights of positives")
        if self.hardness_on not in HARDENED:
            raise ValueError(f"hardness_on must be one of {', '.join(HARDENED)}, got {self.hardness_on!r}")
        whole = isinstance(self.hardest, int) and not isinstance(self.hardest, bool)
        if self.hardest is not None and (not whole or self.hardest < 1):
            raise ValueError(f"hardest must be a whole number above 0, or nothing for all, got {self.hardest!r}")


INFO_NCE = Rule()


def options_from(kind: type, given: Any, what: str, owner: str) -> Any:
    """Options of a dataclass, from one of them or a mapping of its fields.

    Raises:
        ValueError: If it is neither, a field is unknown, or a value is refused; with the owner's name.
    """
    if isinstance(given, kind):
        return given
    known = [field.name for field in fields(kind)]
    if not isinstance(given, Mapping):
        raise ValueError(f"{owner}: {what} must be a mapping of {', '.join(known)}, got {given!r}")
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ValueError(f"{owner}: {what} has no {unknown[0]!r} ({', '.join(known)})")
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{owner}: {what}: {error}") from error


def contrast(
    similarities: Tensor,
    own: Tensor,
    counts: Tensor,
    scale: Tensor,
    rule: Rule = INFO_NCE,
    *,
    explicit: Tensor | None = None,
    certain: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """The loss of every anchor under a rule.

    Args:
        similarities: (N, M) scaled cosines of anchors (rows) to keys (columns).
        own: (N,) int64, the key of each anchor.
        counts: (N, M) bool, the keys that take part.
        scale: 0-d, what cosines were multiplied by.
        rule: What weighs how much.
        explicit: (M,) bool, the keys that are listed negatives; None for no such.
        certain: (N, M) bool, those that are known to be false of the anchor; None for no such.
        weights: (N, M) from 0 up, of several positives, each of them a negative too: CWCL (Srinivasa et al., 2023),
            https://arxiv.org/abs/2309.14580. They are brought to a sum of 1. None for the own key alone.

    Returns:
        (N,) losses; 0 where there is no negative.
    """
    negative = counts.scatter(1, own[:, None], False)
    right = similarities.gather(1, own[:, None]).squeeze(1)
    negative = kept_negatives(similarities, right, negative, scale, rule, certain)
    hardened = _hardened(similarities, scale, rule, explicit)
    above = log_negatives(hardened, right, negative, scale, rule) - right
    losses = above
    if rule.positive_weight:
        losses = torch.logaddexp(above, above.new_full((), math.log(rule.positive_weight)))
    if rule.sigma is not None:
        there = counts.gather(1, own[:, None]).squeeze(1)
        losses = losses + (1 - positive_weights(right / scale, there, rule.sigma)) * right
    if weights is not None:
        shares = weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        losses = losses + right - (shares * similarities).sum(dim=1)
    return torch.where(negative.any(dim=1), losses, 0.0)


def kept_negatives(
    similarities: Tensor, right: Tensor, negative: Tensor, scale: Tensor, rule: Rule, certain: Tensor | None = None
) -> Tensor:
    """(N, M) bool: of some negatives those that `rule.margin`, but for `certain` ones, and `rule.hardest` leave."""
    if rule.margin is not None:
        below = similarities <= (right + rule.margin * scale)[:, None]
        negative = negative & (below if certain is None else below | certain)
    if rule.hardest is not None and rule.hardest < similarities.shape[1]:
        hidden = torch.finfo(similarities.dtype).min
        nearest = similarities.detach().masked_fill(~negative, hidden).topk(rule.hardest, dim=1).indices
        negative = negative & torch.zeros_like(negative).scatter(1, nearest, True)
    return negative


def _hardened(similarities: Tensor, scale: Tensor, rule: Rule, explicit: Tensor | None) -> Tensor:
    if not rule.hardness or (explicit is None and rule.hardness_on == "explicit"):
        return similarities
    bias = rule.hardness * (similarities / scale).detach()
    if explicit is None or rule.hardness_on == "all":
        return similarities + bias
    return similarities + bias.masked_fill(explicit if rule.hardness_on == "in_batch" else ~explicit, 0.0)


def log_negatives(similarities: Tensor, right: Tensor, negative: Tensor, scale: Tensor, rule: Rule) -> Tensor:
    """What the negatives of each anchor come to in its denominator.

    Without `beta` and `tau_plus` it is the logarithm of their sum of e^S. With n of them and weights
    w_j = e^(beta S_j) over its mean, it is that of (sum_j w_j e^S_j - tau_plus n e^right) / (1 - tau_plus), but at the
    least n e^(-scale), which is as small as the sum could be (HCL, equation 4 and its code).

    Args:
        similarities: (N, M), scaled.
        right: (N,), that of the anchor's own key.
        negative: (N, M) bool.
        scale: 0-d.
        rule: Gives `beta` and `tau_plus`.

    Returns:
        (N,), finite, of no use where there is no negative.
    """
    hidden = torch.finfo(similarities.dtype).min

    def log_sum(values: Tensor) -> Tensor:
        return values.masked_fill(~negative, hidden).logsumexp(dim=1)

    number = negative.sum(dim=1).clamp(min=1).to(similarities.dtype).log()
    total = log_sum((1 + rule.beta) * similarities)
    if rule.beta:
        total = total - log_sum(rule.beta * similarities) + number
    if not rule.tau_plus:
        return total
    debt = math.log(rule.tau_plus) + number + right - total
    floor = number - scale
    rest = math.log1p(-rule.tau_plus)
    with torch.no_grad():
        covered = total + torch.log1p(-debt.clamp(max=0).exp()) - rest > floor
    # Where the debt is not covered its logarithm has no gradient of use, and must not be there to make one.
    corrected = total + torch.log1p(-torch.where(covered, debt, -1.0).exp()) - rest
    return torch.where(covered, corrected, floor)


def positive_weights(cosines: Tensor, there: Tensor, sigma: float) -> Tensor:
    """Weights of positives of DCLW (Yeh et al., 2022), equation 7; the nearer a pair already is, the less it weighs.

    Args:
        cosines: (N,) of each pair.
        there: (N,) bool, the pairs that take part.
        sigma: As in `Rule`.

    Returns:
        (N,) from below 2 on; their mean over the pairs that take part is 1. The gradient goes through them.
    """
    hidden = torch.finfo(cosines.dtype).min
    return 2 - there.sum() * (cosines / sigma).masked_fill(~there, hidden).softmax(dim=0)
