"""Odds-ratio preference optimisation, ORPO (Hong et al., 2024), https://arxiv.org/abs/2403.07691."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mllm_align.contract import Needs, Outcome, Signals, Term
from mllm_align.objectives.next_token import next_token_loss
from mllm_align.objectives.preference import CHOSEN, REJECTED, check_positive, rows_with, upcast


def log_one_minus_exp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, without cancellation on either side; x above -1e-7 counts as that."""
    x = x.clamp(max=-1e-7)
    near = x > -math.log(2)
    # Each branch gets only values that it is finite at, or the other's gradient would be NaN.
    close = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    return torch.where(near, close, torch.log1p(-torch.exp(torch.where(near, -1.0, x))))


def log_odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """log [odds(chosen) / odds(rejected)] with odds(p) = p / (1 - p).

    Args:
        chosen: (N,) mean log-probability per token, at most 0: log p.
        rejected: (N,) likewise.

    Returns:
        (N,).

    Example:
        >>> log_odds_ratio(torch.tensor([-1.0]), torch.tensor([-2.0]))
        tensor([1.3133])
    """
    return chosen - rejected - (log_one_minus_exp(chosen) - log_one_minus_exp(rejected))


@dataclass(frozen=True, kw_only=True)
class ORPO:
    """ORPO, odds-ratio preference optimisation (Hong et al., 2024), https://arxiv.org/abs/2403.07691.

    Next-token training on the chosen response, with a penalty that makes its odds higher than those of the rejected
    one; no reference. With a the mean log-probability per token of a response,

        -log p(y_w) per token  -  beta log sigmoid(log odds(exp a_w) - log odds(exp a_l)),  odds(p) = p / (1 - p)

    Args:
        beta: The paper's lambda, weight of the odds ratio.

    Needs:
        Views (image, chosen) and (image, rejected). No reference.

    Shapes:
        Log-probs and token counts (B,) per view. Two terms over the N rows that have both views, each with a
        normaliser of its own: "nll", summed over chosen tokens, with their number as count, and "odds_ratio" of
        weight beta with count N. Metrics (N,): `log_odds`, `accuracies` (whether it is above 0), `nll` the mean per
        chosen token, `logps/chosen` and `logps/rejected` the policy's sums.

    Example:
        >>> logps = {CHOSEN: torch.tensor([-4.0]), REJECTED: torch.tensor([-6.0])}
        >>> signals = Signals(logps, {CHOSEN: torch.tensor([4]), REJECTED: torch.tensor([3])})
        >>> [(term.name, term.weight, round(term.sum.item(), 4)) for term in ORPO()(signals, None).terms]
        [('nll', 1.0, 4.0), ('odds_ratio', 0.1, 0.2382)]

    Relations:
        `DPO(loss_type="simpo")` needs no reference either, and compares the mean log-probs themselves. Without the
        odds ratio this is `NextToken(matched=False)`.

    Deviations:
        The authors' code and TRL's train the first term on the prompt's tokens too; here on the response's alone, as
        everywhere else. Where a response's tokens are certain, 1 - p is held at 1e-7.
    """

    beta: float = 0.1

    needs: ClassVar[Needs] = Needs(views=(CHOSEN, REJECTED))

    def __post_init__(self) -> None:
        """Refuses values without a meaning."""
        check_positive("ORPO", beta=self.beta)

    def __call__(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The terms and the metrics of one batch."""
        rows = rows_with(policy, self.needs.views)
        sums = {view: upcast(policy.logps[view][rows]) for view in self.needs.views}
        counts = {view: policy.num_tokens[view][rows] for view in self.needs.views}
        chosen, rejected = (sums[view] / counts[view] for view in self.needs.views)
        log_odds = log_odds_ratio(chosen, rejected)
        metrics = {
            "log_odds": log_odds.detach(),
            "accuracies": (log_odds.detach() > 0).to(log_odds.dtype),
            "nll": -chosen.detach(),
            "logps/chosen": policy.logps[CHOSEN][rows].detach(),
            "logps/rejected": policy.logps[REJECTED][rows].detach(),
        }
        count = torch.full((), rows.numel(), device=rows.device)
        nll = Term("nll", 1.0, *next_token_loss(sums[CHOSEN], counts[CHOSEN]))
        return Outcome((nll, Term("odds_ratio", self.beta, -F.logsigmoid(log_odds).sum(), count)), metrics)
