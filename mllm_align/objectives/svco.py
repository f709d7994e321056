"""Symmetrical visual contrastive optimisation, S-VCO (Wu et al., 2025), https://arxiv.org/abs/2502.13928."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mllm_align.contract import Needs, Outcome, Signals, View
from mllm_align.objectives.comparison import Comparison, compare, switched_on, views_of
from mllm_align.objectives.preference import check_positive, check_switches, check_weights

# Per response the images that it is scored under: its own, none, the other.
IMAGES = {"chosen": ("image", None, "contrast_image"), "rejected": ("contrast_image", None, "image")}


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
        attend_weight: Of the attend losses; 0 leaves them out.
        reject_weight: Of the reject losses; 0 leaves them out.
        symmetric: False keeps the chosen response's losses alone (inferred to be the paper's one-sided ablation, VCO),
            for contrast images that no text of the row describes: rows then need no rejected response.

    Needs:
        Six views, the chosen and the rejected response under image, contrast_image and no image, with reference; the
        three of the chosen response where not symmetric, and none that only a loss left out would read. No image
        means a prompt rendered without placeholder, not a blank picture.

    Shapes:
        Log-probs and token counts (B,) per view; one term "svco", the sum over the N rows that have all views, with
        count N. Metrics, (N,) unless said: `losses/*` the four losses without weight, `margins/*` (beta times the
        difference of log-ratios) and `accuracies/*` of the four comparisons, `margins/attend` and `margins/reject`
        (2, N) over both responses, `logps/<response>|<image>` the policy's sums.

    Example:
        >>> views = SVCO().needs.views
        >>> signals = Signals({v: torch.tensor([-3.0]) for v in views}, {v: torch.tensor([4]) for v in views})
        >>> SVCO()(signals, signals).loss
        tensor(2.7726)
        >>> [str(view) for view in SVCO(symmetric=False).needs.views]
        ['chosen|image', 'chosen|no_image', 'chosen|contrast_image']

    Relations:
        With `NextToken` on instruction rows (`Weighted`) it keeps what the model knew; its control is `NextToken` on
        the same rows, which trains both matched views. `DPO` compares the responses under one image instead;
        `ImagePreference` compares the two images directly, without the pivot of no image.

    Deviations:
        The authors' code switches a term off where its beta is not positive (and yet evaluates with 0.1 there), and
        logs differences without beta; here weights switch, betas are positive and margins have them. Its four betas
        are two here. It also cuts texts at 128 tokens, end of turn included; nothing is cut here.
    """

    beta_attend: float = 0.1
    beta_reject: float = 0.1
    attend_weight: float = 1.0
    reject_weight: float = 1.0
    symmetric: bool = True

    def __post_init__(self) -> None:
        """Refuses values without a meaning."""
        check_positive("SVCO", beta_attend=self.beta_attend, beta_reject=self.beta_reject)
        check_weights("SVCO", attend_weight=self.attend_weight, reject_weight=self.reject_weight)
        check_switches("SVCO", symmetric=self.symmetric)

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The losses that are on."""
        found: list[Comparison] = []
        for response in ("chosen", "rejected") if self.symmetric else ("chosen",):
            own, none, other = (View(image, response) for image in IMAGES[response])
            found.append(Comparison(f"attend_{response}", own, none, self.beta_attend, self.attend_weight))
            found.append(Comparison(f"reject_{response}", none, other, self.beta_reject, self.reject_weight))
        return switched_on(*found)

    @property
    def needs(self) -> Needs:
        """The views of the losses that are on, and the reference."""
        return Needs(views=views_of(self.comparisons), reference=True)

    def __call__(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The term and the metrics of one batch."""
        outcome = compare("svco", self.comparisons, policy, reference)
        both: dict[str, list[torch.Tensor]] = {}
        for each in self.comparisons:
            both.setdefault(each.name.split("_")[0], []).append(outcome.metrics[f"margins/{each.name}"])
        stacked = {f"margins/{kind}": torch.stack(margins) for kind, margins in both.items()}
        return replace(outcome, metrics={**outcome.metrics, **stacked})
