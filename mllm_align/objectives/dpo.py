"""Direct preference optimisation and its margin variants (Rafailov et al., 2023), https://arxiv.org/abs/2305.18290."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from mllm_align.contract import Needs, Outcome, Signals, Term, View
from mllm_align.objectives.preference import check_positive, log_ratios, rows_with

CHOSEN = View("image", "chosen")
REJECTED = View("image", "rejected")

LossType = Literal["sigmoid", "robust", "hinge", "ipo", "sigmoid_norm"]
SMOOTHED = ("sigmoid", "robust")
LENGTH_AVERAGED = ("ipo", "sigmoid_norm")


def dpo_loss(margin: Tensor, *, beta: float, loss_type: LossType, label_smoothing: float) -> Tensor:
    """Loss of a preference from its margin.

    Args:
        margin: Any shape; log-ratio of the preferred response minus that of the other, over tokens summed or, for
            "ipo" and "sigmoid_norm", averaged.
        beta: Scale of the margin; for "ipo" the tau of its paper.
        loss_type: See `DPO`.
        label_smoothing: Assumed probability that a label is flipped; read by "sigmoid" and "robust" alone.

    Returns:
        The loss of each entry, in the shape of `margin`.

    Example:
        >>> margin = torch.tensor([0.0, 3.0], dtype=torch.float64)
        >>> dpo_loss(margin, beta=0.1, loss_type="sigmoid", label_smoothing=0.0)
        tensor([0.6931, 0.5544], dtype=torch.float64)
    """
    logits = beta * margin
    if loss_type == "hinge":
        return torch.relu(1 - logits)
    if loss_type == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    if loss_type == "sigmoid_norm":
        return -F.logsigmoid(logits)
    kept = -(1 - label_smoothing) * F.logsigmoid(logits)
    flipped = -label_smoothing * F.logsigmoid(-logits)
    if loss_type == "robust":
        return (kept - flipped) / (1 - 2 * label_smoothing)
    return kept + flipped


@dataclass(frozen=True, kw_only=True)
class DPO:
    """DPO, direct preference optimisation (Rafailov et al., 2023), https://arxiv.org/abs/2305.18290.

    Raises the log-ratio of the chosen response over that of the rejected one, both under the row's own image. With
    c and r the log-ratios log pi - log pi_ref of chosen and rejected, summed over their n_c and n_r tokens, and
    delta = c - r:

    | loss_type | loss of a row | source |
    |---|---|---|
    | sigmoid | -(1-e) log sigmoid(beta delta) - e log sigmoid(-beta delta) | DPO, eq. 7; e > 0 is conservative DPO |
    | robust | [-(1-e) log sigmoid(beta delta) + e log sigmoid(-beta delta)] / (1-2e) | arXiv 2403.00409 |
    | hinge | max(0, 1 - beta delta) | SLiC, arXiv 2305.10425, on log-ratios |
    | ipo | (c/n_c - r/n_r - 1/(2 beta))^2 | arXiv 2310.12036; beta is its tau |
    | sigmoid_norm | -log sigmoid(beta (c/n_c - r/n_r)) | length-normalised DPO, Tulu 3, arXiv 2411.15124 |

    Args:
        beta: Strength of the tie to the reference. Length-averaged variants want larger values than 0.1.
        loss_type: A row of the table.
        label_smoothing: e, the assumed share of flipped labels, in [0, 0.5); for "sigmoid" and "robust".

    Needs:
        Views (image, chosen) and (image, rejected), with reference. Text-only rows are rows whose image list is empty.

    Shapes:
        Log-probs and token counts (B,) per view; one term "dpo", the sum over the N rows that have both views, with
        count N; metrics (N,), named as TRL names them: `rewards/*` are beta times summed log-ratios for every
        loss_type, `logps/*` the policy's sums.

    Example:
        >>> logps = {CHOSEN: torch.tensor([-4.0]), REJECTED: torch.tensor([-7.0])}
        >>> counts = {CHOSEN: torch.tensor([5]), REJECTED: torch.tensor([6])}
        >>> start = {CHOSEN: torch.tensor([-5.0]), REJECTED: torch.tensor([-5.0])}
        >>> DPO()(Signals(logps, counts), Signals(start, counts)).loss
        tensor(0.5544)

    Relations:
        `SVCO` compares the same response under different images and never two responses. Plus `NextToken` on the
        chosen response (`Weighted`) this is RPO, https://arxiv.org/abs/2404.19733.

    Deviations:
        TRL ignores label_smoothing for "sigmoid"; here it gives conservative DPO. "ipo" averages log-ratios over
        tokens, as TRL does on its authors' advice; the paper's formula has sums.
    """

    beta: float = 0.1
    loss_type: LossType = "sigmoid"
    label_smoothing: float = 0.0

    needs: ClassVar[Needs] = Needs(views=(CHOSEN, REJECTED), reference=True)

    def __post_init__(self) -> None:
        """Refuses values without a meaning."""
        check_positive("DPO", beta=self.beta)
        if self.loss_type not in get_args(LossType):
            raise ValueError(f"DPO: loss_type must be one of {', '.join(get_args(LossType))}, got {self.loss_type!r}")
        if not isinstance(self.label_smoothing, int | float) or not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"DPO: label_smoothing must be in [0, 0.5), got {self.label_smoothing!r}")
        if self.label_smoothing and self.loss_type not in SMOOTHED:
            raise ValueError(
                f"DPO: loss_type {self.loss_type!r} has no label smoothing; it is for {' and '.join(SMOOTHED)}"
            )

    def __call__(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The term and the metrics of one batch."""
        rows = rows_with(policy, self.needs.views)
        ratios = log_ratios(policy, reference, self.needs.views, rows)
        chosen, rejected = ratios[CHOSEN], ratios[REJECTED]
        if self.loss_type in LENGTH_AVERAGED:
            margin = chosen / policy.num_tokens[CHOSEN][rows] - rejected / policy.num_tokens[REJECTED][rows]
        else:
            margin = chosen - rejected
        losses = dpo_loss(margin, beta=self.beta, loss_type=self.loss_type, label_smoothing=self.label_smoothing)
        chosen_rewards, rejected_rewards = self.beta * chosen.detach(), self.beta * rejected.detach()
        metrics = {
            "rewards/chosen": chosen_rewards,
            "rewards/rejected": rejected_rewards,
            "rewards/margins": chosen_rewards - rejected_rewards,
            "rewards/accuracies": (chosen_rewards > rejected_rewards).to(losses.dtype),
            "logps/chosen": policy.logps[CHOSEN][rows].detach(),
            "logps/rejected": policy.logps[REJECTED][rows].detach(),
        }
        count = torch.full((), rows.numel(), device=rows.device)
        return Outcome((Term("dpo", 1.0, losses.sum(), count),), metrics)
