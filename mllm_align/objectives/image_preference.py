"""The preference between two images for one response, as mDPO, rDPO, CHiP and V-DPO each add it to DPO."""

from __future__ import annotations

from dataclasses import dataclass

from mllm_align.contract import Needs, Outcome, Signals
from mllm_align.objectives.comparison import Comparison, compare, views_of
from mllm_align.objectives.preference import (
    CHOSEN,
    CONTRAST_CHOSEN,
    CONTRAST_REJECTED,
    REJECTED,
    check_positive,
    check_switches,
)


@dataclass(frozen=True, kw_only=True)
class ImagePreference:
    """Image preference, the conditional term of mDPO alone (Wang et al., 2024), https://arxiv.org/abs/2406.11839.

    One response, two images: it should gain more under the image that it describes than under the other one. No
    second response is read, so a prior for one wording cancels, and the contrast image needs no text of its own: a
    crop, noise, a retrieved image. With log-ratios r(y|i) = log pi(y|i) - log pi_ref(y|i) summed over tokens, images
    i_w (own) and i_l (contrast), and responses y_w and y_l, the loss of a row is

        -log sigmoid(beta [r(y_w|i_w) - r(y_w|i_l)])      chosen

    and, both ways, where the rejected response is right for the contrast image, plus

        -log sigmoid(beta [r(y_l|i_l) - r(y_l|i_w)])      rejected

    Args:
        beta: Strength of the tie to the reference.
        both_ways: Whether the rejected response is compared too.

    Needs:
        Views (image, chosen) and (contrast_image, chosen), with reference; both ways also (contrast_image, rejected)
        and (image, rejected).

    Shapes:
        Log-probs and token counts (B,) per view; one term "image_preference", the sum over the N rows that have all
        views, with count N. Metrics, (N,) each: `losses/*`, `margins/*` (beta times the difference of log-ratios) and
        `accuracies/*` of chosen and rejected, `logps/<response>|<image>` the policy's sums.

    Example:
        >>> import torch
        >>> r = dict(zip(ImagePreference().needs.views, (1.0, -2.0)))
        >>> counts = {view: torch.tensor([4]) for view in r}
        >>> policy = Signals({view: torch.tensor([value]) for view, value in r.items()}, counts)
        >>> start = Signals({view: torch.zeros(1) for view in r}, counts)
        >>> ImagePreference()(policy, start).loss
        tensor(0.5544)

    Relations:
        `RDPO` and `MDPO` are this plus `DPO`, plus an anchor; `SVCO` puts the response without any image in between,
        `SVCO(symmetric=False)` for the chosen response alone. V-DPO calls it language-bias reduction, with a blank
        image.

    Deviations:
        None of the papers trains it alone: they add it to DPO with equal weight (`Weighted` does any). The two
        directions together are ours, after S-VCO's symmetry.
    """

    beta: float = 0.1
    both_ways: bool = False

    def __post_init__(self) -> None:
        """Refuses values without a meaning."""
        check_positive("ImagePreference", beta=self.beta)
        check_switches("ImagePreference", both_ways=self.both_ways)

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """One per direction."""
        chosen = Comparison("chosen", CHOSEN, CONTRAST_CHOSEN, self.beta)
        rejected = Comparison("rejected", CONTRAST_REJECTED, REJECTED, self.beta)
        return (chosen, rejected) if self.both_ways else (chosen,)

    @property
    def needs(self) -> Needs:
        """The views that are compared, and the reference."""
        return Needs(views=views_of(self.comparisons), reference=True)

    def __call__(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The term and the metrics of one batch."""
        return compare("image_preference", self.comparisons, policy, reference)
