"""Symmetrical visual contrastive optimisation, S-VCO (Wu et al., 2025), https://arxiv.org/abs/2502.13928."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mllm_align.contract import Needs, Outcome, Signals, Term, View
from mllm_align.objectives.preference import check_positive, log_ratios, rows_with


class ByImage(NamedTuple):
    """One number per row for one response under its own image, under no image and under the other image."""

    own: Tensor
    none: Tensor
    other: Tensor


CHOSEN = (View("image", "chosen"), View(None, "chosen"), View("contrast_image", "chosen"))
REJECTED = (View("contrast_image", "rejected"), View(None, "rejected"), View("image", "rejected"))


def attend_reject_loss(ratios: ByImage, *, beta_attend: float, beta_reject: float) -> tuple[Tensor, Tensor]:
    """The two losses of one response: its own image above no image, and no image above the other image.

    Args:
        ratios: Log-ratios log pi - log pi_ref of the response, (B,) each.
        beta_attend: Scale of own over none.
        beta_reject: Scale of none over other.

    Returns:
        The attend losses and the reject losses, (B,) each.
    """
    attend = -F.logsigmoid(beta_attend * (ratios.own - ratios.none))
    reject = -F.logsigmoid(beta_reject * (ratios.none - ratios.other))
    return attend, reject


def svco_loss(chosen: ByImage, rejected: ByImage, *, beta_attend: float, beta_reject: float) -> Tensor:
    """S-VCO: the sum of the attend and reject losses of both responses, each beside the image that it describes.

    Args:
        chosen: Log-ratios (B,) of the chosen response; its own image is the row's image.
        rejected: Log-ratios (B,) of the rejected response; its own image is the contrast image.
        beta_attend: beta1 and beta3, scale of own image over no image.
        beta_reject: beta2 and beta4, scale of no image over other image.

    Returns:
        (B,) losses; symmetric in `chosen` and `rejected`.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> chosen = ByImage(own=2 * one, none=0.5 * one, other=-one)
        >>> rejected = ByImage(own=one, none=-0.5 * one, other=-3 * one)
        >>> svco_loss(chosen, rejected, beta_attend=0.1, beta_reject=0.1)
        tensor([2.4388], dtype=torch.float64)
    """
    attend_chosen, reject_chosen = attend_reject_loss(chosen, beta_attend=beta_attend, beta_reject=beta_reject)
    attend_rejected, reject_rejected = attend_reject_loss(rejected, beta_attend=beta_attend, beta_reject=beta_reject)
    return attend_chosen + reject_chosen + attend_rejected + reject_rejected


@dataclass(frozen=True, kw_only=True)
class SVCO:
    """S-VCO, symmetrical visual contrastive optimisation (Wu et al., 2025), https://arxiv.org/abs/2502.13928.

    Each response describes one image of a minimal pair: the chosen one the row's image, the rejected one the contrast
    image. S-VCO raises each response under its own image above the same response without any image (attend), and
    lowers it under the other image below the same response without any image (reject). With log-ratios
    r(y|i) = log pi(y|i) - log pi_ref(y|i) summed over tokens, images i_w (own) and i_l (contrast), responses y_w and
    y_l, and 0 for no image, the loss of a row is the sum, without weights, of

        -log sigmoid(beta_attend [r(y_w|i_w) - r(y_w|0)])      attend_chosen, beta1
        -log sigmoid(beta_reject [r(y_w|0)   - r(y_w|i_l)])    reject_chosen, beta2
        -log sigmoid(beta_attend [r(y_l|i_l) - r(y_l|0)])      attend_rejected, beta3
        -log sigmoid(beta_reject [r(y_l|0)   - r(y_l|i_w)])    reject_rejected, beta4

    Two responses are never compared with each other, so a prior for one wording cancels.

    Args:
        beta_attend: beta1 and beta3, own image over no image.
        beta_reject: beta2 and beta4, no image over other image.

    Needs:
        Six views, the chosen and the rejected response under image, contrast_image and no image, with reference.
        No image means a prompt rendered without placeholder, not a blank picture.

    Shapes:
        Log-probs and token counts (B,) per view; one term "svco", the sum over the N rows that have all six views,
        with count N. Metrics, (N,) unless said: `losses/*` the four terms, `margins/*` (beta times the difference of
        log-ratios) and `accuracies/*` of the four comparisons, `margins/attend` and `margins/reject` (2, N) over both
        responses, `logps/<response>|<image>` the policy's sums.

    Example:
        >>> views = SVCO.needs.views
        >>> signals = Signals({v: torch.tensor([-3.0]) for v in views}, {v: torch.tensor([4]) for v in views})
        >>> SVCO()(signals, signals).loss
        tensor(2.7726)

    Relations:
        With `NextToken` on instruction rows (`Weighted`) it keeps what the model knew; its control is `NextToken` on
        the same rows, which trains both matched views. `DPO` compares the responses under one image instead.

    Deviations:
        The authors' code switches a term off where its beta is not positive (and yet evaluates with 0.1 there), and
        logs differences without beta; here a beta must be positive and margins have it. Its four betas are two here.
        It also cuts texts at 128 tokens, end of turn included; nothing is cut here.
    """

    beta_attend: float = 0.1
    beta_reject: float = 0.1

    needs: ClassVar[Needs] = Needs(views=CHOSEN + REJECTED, reference=True)

    def __post_init__(self) -> None:
        """Refuses values without a meaning."""
        check_positive("SVCO", beta_attend=self.beta_attend, beta_reject=self.beta_reject)

    def __call__(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The term and the metrics of one batch."""
        rows = rows_with(policy, self.needs.views)
        ratios = log_ratios(policy, reference, self.needs.views, rows)
        chosen = ByImage(*(ratios[view] for view in CHOSEN))
        rejected = ByImage(*(ratios[view] for view in REJECTED))
        losses = svco_loss(chosen, rejected, beta_attend=self.beta_attend, beta_reject=self.beta_reject)
        metrics = self._metrics(chosen, rejected)
        for view in self.needs.views:
            metrics[f"logps/{view}"] = policy.logps[view][rows].detach()
        count = torch.full((), rows.numel(), device=rows.device)
        return Outcome((Term("svco", 1.0, losses.sum(), count),), metrics)

    def _metrics(self, chosen: ByImage, rejected: ByImage) -> dict[str, Tensor]:
        margins = {}
        for response, ratios in (("chosen", chosen), ("rejected", rejected)):
            margins[f"attend_{response}"] = self.beta_attend * (ratios.own - ratios.none).detach()
            margins[f"reject_{response}"] = self.beta_reject * (ratios.none - ratios.other).detach()
        metrics = {f"losses/{name}": -F.logsigmoid(margin) for name, margin in margins.items()}
        metrics |= {f"margins/{name}": margin for name, margin in margins.items()}
        for kind in ("attend", "reject"):
            metrics[f"margins/{kind}"] = torch.stack([margins[f"{kind}_chosen"], margins[f"{kind}_rejected"]])
        metrics |= {f"accuracies/{name}": (margin > 0).to(margin.dtype) for name, margin in margins.items()}
        return metrics
