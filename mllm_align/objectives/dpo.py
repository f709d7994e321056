"""Direct preference optimisation and its variants (Rafailov et al., 2023), https://arxiv.org/abs/2305.18290."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mllm_align.contract import Needs, Outcome, Signals, Term, View
from mllm_align.objectives.dpo_losses import VARIANTS, LossType, Variant, dpo_loss
from mllm_align.objectives.preference import CHOSEN, REJECTED, check_positive, log_ratios, rows_with, upcast

OPTIONS = ("label_smoothing", "gamma", "discopop_tau")


@dataclass(frozen=True, kw_only=True)
class DPO:
    """DPO, direct preference optimisation (Rafailov et al., 2023), https://arxiv.org/abs/2305.18290.

    Raises the log-ratio of the chosen response over that of the rejected one, both under the row's own image. With
    c and r the log-ratios log pi - log pi_ref of chosen and rejected, summed over their n_c and n_r tokens,
    x = beta (c - r), s the logistic function and e the label smoothing:

    | loss_type | loss of a row | source |
    |---|---|---|
    | sigmoid | -(1-e) log s(x) - e log s(-x) | DPO, eq. 7; e > 0 is conservative DPO |
    | robust | [-(1-e) log s(x) + e log s(-x)] / (1-2e) | arXiv 2403.00409 |
    | hinge | max(0, 1 - x) | SLiC, arXiv 2305.10425, on log-ratios |
    | ipo | (c/n_c - r/n_r - 1/(2 beta))^2 | arXiv 2310.12036; beta is its tau |
    | sigmoid_norm | -log s(beta (c/n_c - r/n_r)) | length-normalised DPO, Tulu 3, arXiv 2411.15124 |
    | exo_pair | KL of (s(x), s(-x)) from (1-e, e) | EXO, arXiv 2402.00856; e > 0 |
    | nca_pair | -log s(beta c) - [log s(-beta c) + log s(-beta r)] / 2 | NCA, arXiv 2402.05369 |
    | bco_pair | -log s(beta c) - log s(-beta r) | BCO without its running mean, arXiv 2404.04656 |
    | sppo_hard | (c - 1/(2 beta))^2 + (r + 1/(2 beta))^2 | SPPO, arXiv 2405.00675 |
    | apo_zero | 1 - s(beta c) + s(beta r) | APO, arXiv 2408.06266 |
    | apo_down | s(beta c) + 1 - s(x) | APO, for chosen responses worse than the model's own |
    | discopop | -(1-m) log s(x) + m exp(-x), m = s(x / tau) | DiscoPOP, arXiv 2406.08414 |
    | simpo | as sigmoid, x = beta (l_c/n_c - l_r/n_r) - gamma; l is log pi | SimPO, arXiv 2405.14734; no reference |

    Args:
        beta: Strength of the tie to the reference. Length-averaged variants (ipo, sigmoid_norm, simpo) want larger
            values than 0.1: Tulu 3 is said to use 5, SimPO 2 to 2.5.
        loss_type: A row of the table.
        label_smoothing: e, the assumed share of flipped labels, in [0, 0.5); for sigmoid, robust, exo_pair and simpo.
        gamma: Margin that simpo's chosen response should win by.
        discopop_tau: Temperature of discopop's mixture, at most 1: above, the loss of a lost row grows exponentially.

    Needs:
        Views (image, chosen) and (image, rejected), with reference (simpo: without). Text-only rows are rows whose
        image list is empty.

    Shapes:
        Log-probs and token counts (B,) per view; one term "dpo", the sum over the N rows that have both views, with
        count N; metrics (N,), named as TRL names them: `rewards/*` are beta times summed log-ratios for every
        loss_type (simpo: times mean log-probs), `logps/*` the policy's sums.

    Example:
        >>> logps = {CHOSEN: torch.tensor([-4.0]), REJECTED: torch.tensor([-7.0])}
        >>> counts = {CHOSEN: torch.tensor([5]), REJECTED: torch.tensor([6])}
        >>> start = {CHOSEN: torch.tensor([-5.0]), REJECTED: torch.tensor([-5.0])}
        >>> DPO()(Signals(logps, counts), Signals(start, counts)).loss
        tensor(0.5544)
        >>> DPO(loss_type="simpo", beta=2.0).needs.reference
        False

    Relations:
        TRL's lists of loss types are a `Weighted` of several: with `NextToken(matched=False)`, TRL's "sft", sigmoid is
        RPO, https://arxiv.org/abs/2404.19733, and sigmoid .8, bco_pair .2, next-token 1 is MPO,
        https://arxiv.org/abs/2411.10442. `RDPO`, `MDPO` and `CHIP` add preferences between images, `DDPO` weighs
        tokens, `ORPO` needs no reference; `SVCO` compares one response under different images, never two responses.

    Deviations:
        TRL ignores label_smoothing for "sigmoid"; here it gives conservative DPO. "ipo" averages log-ratios over
        tokens, as TRL does on its authors' advice; the paper's formula has sums. Not there: aot, f-divergences,
        LD-DPO, WPO and AlphaPO (`dpo_losses` says why); KTO, whose baseline is scored on completions of other rows,
        which are no views of a row; POVID's second stage, whose rejected tokens are the model's own argmax, and the
        token preference of TPO, made of raw logits, neither of which log-probs of responses tell.
    """

    beta: float = 0.1
    loss_type: LossType = "sigmoid"
    label_smoothing: float = 0.0
    gamma: float = 0.5
    discopop_tau: float = 0.05

    def __post_init__(self) -> None:
        """Refuses values without a meaning, and options that the loss does not read."""
        check_positive("DPO", beta=self.beta, discopop_tau=self.discopop_tau)
        if self.discopop_tau > 1:
            raise ValueError(f"DPO: discopop_tau must be at most 1, got {self.discopop_tau!r}")
        if self.loss_type not in VARIANTS:
            raise ValueError(f"DPO: loss_type must be one of {', '.join(VARIANTS)}, got {self.loss_type!r}")
        for name, top in (("label_smoothing", 0.5), ("gamma", float("inf"))):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < top:
                raise ValueError(f"DPO: {name} must be in [0, {top}), got {value!r}")
        if self.loss_type == "exo_pair" and not self.label_smoothing:
            raise ValueError("DPO: loss_type 'exo_pair' needs a label_smoothing above 0, such as 0.001")
        defaults: dict[str, Any] = {field.name: field.default for field in fields(self)}
        for name in OPTIONS:
            if name not in self.variant.options and getattr(self, name) != defaults[name]:
                readers = [key for key, variant in VARIANTS.items() if name in variant.options]
                raise ValueError(f"DPO: loss_type {self.loss_type!r} reads no {name}; it is for {', '.join(readers)}")

    @property
    def variant(self) -> Variant:
        """The loss, and what its scores are."""
        return VARIANTS[self.loss_type]

    @property
    def needs(self) -> Needs:
        """Both responses under the row's image, and the reference but for simpo."""
        return Needs(views=(CHOSEN, REJECTED), reference=self.variant.reference)

    def __call__(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The term and the metrics of one batch."""
        views = self.needs.views
        rows = rows_with(policy, views)
        sums = self._sums(policy, reference, rows)
        means = {view: sums[view] / policy.num_tokens[view][rows] for view in views} if self.variant.averaged else sums
        options = {name: getattr(self, name) for name in self.variant.options}
        losses = dpo_loss(means[CHOSEN], means[REJECTED], loss_type=self.loss_type, beta=self.beta, **options)
        rewarded = sums if self.variant.reference else means
        chosen, rejected = (self.beta * rewarded[view].detach() for view in views)
        metrics = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).to(losses.dtype),
            "logps/chosen": policy.logps[CHOSEN][rows].detach(),
            "logps/rejected": policy.logps[REJECTED][rows].detach(),
        }
        count = torch.full((), rows.numel(), device=rows.device)
        return Outcome((Term("dpo", 1.0, losses.sum(), count),), metrics)

    def _sums(self, policy: Signals, reference: Signals | None, rows: Tensor) -> dict[View, Tensor]:
        if self.variant.reference:
            return log_ratios(policy, reference, self.needs.views, rows)
        return {view: upcast(policy.logps[view][rows]) for view in self.needs.views}
