"""What the preference objectives share: their views, the rows that have them, log-ratios, checks of options."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mllm_align.contract import Signals, View

CHOSEN = View("image", "chosen")
REJECTED = View("image", "rejected")
CONTRAST_CHOSEN = View("contrast_image", "chosen")
CONTRAST_REJECTED = View("contrast_image", "rejected")


def check_measured(signals: Signals, views: Sequence[View]) -> None:
    """Raises ValueError naming the views that `signals` lack altogether; a view that no row has is there, as zeros."""
    missing = [str(view) for view in views if view not in signals.num_tokens]
    if missing:
        measured = ", ".join(str(view) for view in signals.num_tokens) or "nothing"
        raise ValueError(f"not measured: {', '.join(missing)} (measured: {measured}); measure what `needs` declares")


def rows_with(signals: Signals, views: Sequence[View]) -> Tensor:
    """(N,) int64: indices of the rows that have every one of `views`; ValueError if one was not measured."""
    check_measured(signals, views)
    return signals.rows_with(views)


def upcast(values: Tensor) -> Tensor:
    """`values` in float32 or wider: differences of sums of log-probabilities lose all their digits in bfloat16."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def log_ratios(policy: Signals, reference: Signals | None, views: Sequence[View], rows: Tensor) -> dict[View, Tensor]:
    """Log-ratios log pi(y|x) - log pi_ref(y|x), summed over response tokens.

    Args:
        policy: Signals of the model that is trained.
        reference: Signals of the frozen reference on the same rows.
        views: The views to compare.
        rows: (N,) the rows to keep, all of which have all the views.

    Returns:
        Per view (N,), float32 or wider, with the policy's gradient and none of the reference's.

    Raises:
        ValueError: If the reference was not measured, or not on the same tokens.
    """
    if reference is None:
        raise ValueError("this objective compares with a frozen reference: measure one and pass its Signals")
    check_measured(reference, views)
    if not _same_tokens(policy, reference, views, rows):
        raise ValueError("policy and reference scored different numbers of tokens: measure both on the same batch")
    return {view: upcast(policy.logps[view][rows]) - upcast(reference.logps[view][rows]).detach() for view in views}


def _same_tokens(policy: Signals, reference: Signals, views: Sequence[View], rows: Tensor) -> bool:
    sides = (policy.host_num_tokens, reference.host_num_tokens)
    if all(view in side for side in sides for view in views):
        # Rows that are kept have all the views under the policy.
        own, other = (list(zip(*(side[view] for view in views), strict=True)) for side in sides)
        return len(own) == len(other) and all(
            left == right for left, right in zip(own, other, strict=True) if all(left)
        )
    scored, compared = (torch.stack([side.num_tokens[view][rows] for view in views]) for side in (policy, reference))
    return torch.equal(scored, compared)


def check_positive(owner: str, **numbers: float) -> None:
    """Raises ValueError unless every number is a finite one above 0; `owner` is named in the message."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{owner}: {name} must be a number above 0, got {value!r}")


def check_weights(owner: str, **weights: float) -> None:
    """Raises ValueError unless every weight is a finite number of at least 0 and one of them is above 0."""
    for name, value in weights.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"{owner}: {name} must be a number of at least 0, got {value!r}")
    if not any(weights.values()):
        raise ValueError(f"{owner}: nothing is left to train, one of {', '.join(weights)} must be above 0")


def check_switches(owner: str, **switches: bool) -> None:
    """Raises ValueError unless every switch is True or False."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ValueError(f"{owner}: {name} must be true or false, got {value!r}")
