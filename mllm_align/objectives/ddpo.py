"""Dense DPO, the objective of RLHF-V (Yu et al., 2023), https://arxiv.org/abs/2312.00849."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mllm_align.contract import Needs, Outcome, Signals, Term
from mllm_align.objectives.comparison import preference_loss
from mllm_align.objectives.preference import CHOSEN, REJECTED, check_positive, check_switches, log_ratios, rows_with
from mllm_align.objectives.segments import changed_log_ratios


def dense_score(whole: Tensor, changed: Tensor, *, gamma: float, size: Tensor | None = None) -> Tensor:
    """Log-ratio of a response in which changed tokens count gamma times, divided by `size` where one is given.

    Args:
        whole: (N,) sums over all tokens.
        changed: (N,) sums over the changed tokens.
        gamma: Weight of a changed token.
        size: (N,) what to divide by.

    Example:
        >>> dense_score(torch.tensor([6.0]), torch.tensor([2.0]), gamma=5.0, size=torch.tensor([7.0]))
        tensor([2.])
    """
    weighted = whole + (gamma - 1) * changed
    return weighted if size is None else weighted / size


@dataclass(frozen=True, kw_only=True)
class DDPO:
    """DDPO, dense DPO, the objective of RLHF-V (Yu et al., 2023), https://arxiv.org/abs/2312.00849.

    For pairs in which the chosen response is the rejected one with its errors corrected: the tokens that were changed
    weigh gamma times as much as those that both have. With y_u and y_c the unchanged and the changed tokens of a
    response, its score and the loss of a row are

        lp(y) = [sum over y_u of log pi + gamma sum over y_c of log pi] / N,  N = |y_u| + gamma |y_c|
        -log sigmoid(beta [lp(y_w) - lp_ref(y_w) - lp(y_l) + lp_ref(y_l)])

    Args:
        beta: Strength of the tie to the reference.
        gamma: Weight of a changed token.
        normalise: Whether to divide by N.

    Needs:
        Views (image, chosen) and (image, rejected), with reference, per-token log-probabilities and token ids.

    Shapes:
        Log-probs and token counts (B,), token log-probs (number of tokens,) per view; one term "ddpo", the sum over
        the N rows that have both views, with count N. Metrics (N,): `rewards/chosen`, `rewards/rejected`,
        `rewards/margins` (beta times weighted log-ratios) and `rewards/accuracies`, `changed/chosen` and
        `changed/rejected` the share of tokens that differ, `logps/chosen` and `logps/rejected` the policy's sums.

    Example:
        >>> from mllm_align.contract import Ragged
        >>> ids = {CHOSEN: ((1, 2, 3, 4),), REJECTED: ((1, 2, 3, 9),)}
        >>> def signals(last):
        ...     tokens = {v: torch.tensor([-1.0, -1.0, -1.0, p]) for v, p in last.items()}
        ...     ragged = {v: Ragged(t, torch.zeros(4, dtype=torch.long)) for v, t in tokens.items()}
        ...     counts = {v: torch.tensor([4]) for v in tokens}
        ...     return Signals({v: t.sum()[None] for v, t in tokens.items()}, counts, ragged, host_token_ids=ids)
        >>> DDPO()(signals({CHOSEN: -1.0, REJECTED: -2.0}), signals({CHOSEN: -2.0, REJECTED: -2.0})).loss
        tensor(0.5491)

    Relations:
        At gamma 1 this is `DPO`, not normalised, or its "sigmoid_norm", normalised. `CHIP` has the changed tokens in a
        loss of their own.

    Deviations:
        The authors' code divides by N only on demand: their command has weight 1.1, beta .1 and no division, which is
        `DDPO(gamma=1.1, beta=0.1, normalise=False)`; the code's own defaults are 3.0 and .5, the paper's 5 and .5
        (unverified). Which tokens changed is found as there, by difflib on token ids, on responses without prompts.
    """

    beta: float = 0.5
    gamma: float = 5.0
    normalise: bool = True

    needs: ClassVar[Needs] = Needs(views=(CHOSEN, REJECTED), reference=True, tokens=True)

    def __post_init__(self) -> None:
        """Refuses values without a meaning."""
        check_positive("DDPO", beta=self.beta, gamma=self.gamma)
        check_switches("DDPO", normalise=self.normalise)

    def __call__(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The term and the metrics of one batch."""
        views = self.needs.views
        rows = rows_with(policy, views)
        whole = log_ratios(policy, reference, views, rows)
        assert reference is not None  # or log_ratios had said so
        changed = changed_log_ratios(policy, reference, views, rows)
        scores, metrics = [], {}
        for view in views:
            tokens = policy.num_tokens[view][rows]
            size = tokens + (self.gamma - 1) * changed.counts[view] if self.normalise else None
            scores.append(dense_score(whole[view], changed.sums[view], gamma=self.gamma, size=size))
            metrics[f"rewards/{view.response}"] = self.beta * scores[-1].detach()
            metrics[f"changed/{view.response}"] = changed.counts[view] / tokens
            metrics[f"logps/{view.response}"] = policy.logps[view][rows].detach()
        losses = preference_loss(*scores, beta=self.beta)
        metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        metrics["rewards/accuracies"] = (metrics["rewards/margins"] > 0).to(losses.dtype)
        count = torch.full((), rows.numel(), device=rows.device)
        return Outcome((Term("ddpo", 1.0, losses.sum(), count),), metrics)
