"""Conditional preference optimisation, mDPO (Wang et al., 2024), https://arxiv.org/abs/2406.11839."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mllm_align.contract import Needs, Outcome, Signals
from mllm_align.objectives.comparison import Comparison, compare, switched_on, views_of
from mllm_align.objectives.preference import CHOSEN, CONTRAST_CHOSEN, REJECTED, check_positive, check_weights


@dataclass(frozen=True, kw_only=True)
class MDPO:
    """mDPO, conditional preference optimisation (Wang et al., 2024), https://arxiv.org/abs/2406.11839.

    DPO can be learnt from the texts alone. mDPO adds a preference that only the image decides, the chosen response
    under the whole image over the same response under a crop of it, and an anchor that keeps the chosen response from
    becoming less likely. With log-ratios r(y|i) = log pi(y|i) - log pi_ref(y|i) summed over tokens, images i_w (own)
    and i_l (the crop, as contrast image), and responses y_w and y_l, the loss of a row is the sum of

        -log sigmoid(beta [r(y_w|i_w) - r(y_l|i_w)])    text
        -log sigmoid(beta [r(y_w|i_w) - r(y_w|i_l)])    image
        -log sigmoid(beta [r(y_w|i_w) - delta])         anchor

    Args:
        beta: Strength of the tie to the reference, in all three.
        anchor: delta, the log-ratio that the chosen response should exceed.
        text_weight: Of the text loss; 0 leaves it out.
        image_weight: Of the image loss; 0 leaves it out.
        anchor_weight: Of the anchor loss; 0 leaves it out.

    Needs:
        Views (image, chosen), (image, rejected) and (contrast_image, chosen), with reference; none that only a loss
        left out would read. The crop is made by the data source (`corrupt: {kind: crop, scale: [0.01, 0.2]}`): 1 to
        20 % of the area, resized back.

    Shapes:
        Log-probs and token counts (B,) per view; one term "mdpo", the sum over the N rows that have all views, with
        count N. Metrics, (N,) each: `losses/*` (without weight), `margins/*` (beta times what the sigmoid compares)
        and `accuracies/*` of text, image and anchor, `logps/<response>|<image>` the policy's sums.

    Example:
        >>> import torch
        >>> r = dict(zip(MDPO().needs.views, (1.0, -2.0, 0.5)))
        >>> counts = {view: torch.tensor([4]) for view in r}
        >>> policy = Signals({view: torch.tensor([value]) for view, value in r.items()}, counts)
        >>> start = Signals({view: torch.zeros(1) for view in r}, counts)
        >>> MDPO()(policy, start).loss
        tensor(1.8672)

    Relations:
        `RDPO` is mDPO without the anchor, on retrieved images; the image loss alone is `ImagePreference`. The anchor
        compares with a number, so unlike the other two it feels a constant added to all log-ratios of a response.

    Deviations:
        The authors' code draws the crop inside the model's forward pass, so policy and reference see different crops
        and the first loss is not 3 log 2; here both see the one that the data has. delta is 0 in their code; the
        paper's value is unverified.
    """

    beta: float = 0.1
    anchor: float = 0.0
    text_weight: float = 1.0
    image_weight: float = 1.0
    anchor_weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuses values without a meaning."""
        check_positive("MDPO", beta=self.beta)
        weights = {"text_weight": self.text_weight, "image_weight": self.image_weight}
        check_weights("MDPO", **weights, anchor_weight=self.anchor_weight)
        if isinstance(self.anchor, bool) or not isinstance(self.anchor, int | float) or not math.isfinite(self.anchor):
            raise ValueError(f"MDPO: anchor must be a finite number, got {self.anchor!r}")

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The losses that are on."""
        return switched_on(
            Comparison("text", CHOSEN, REJECTED, self.beta, self.text_weight),
            Comparison("image", CHOSEN, CONTRAST_CHOSEN, self.beta, self.image_weight),
            Comparison("anchor", CHOSEN, self.anchor, self.beta, self.anchor_weight),
        )

    @property
    def needs(self) -> Needs:
        """The views of the losses that are on, and the reference."""
        return Needs(views=views_of(self.comparisons), reference=True)

    def __call__(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The term and the metrics of one batch."""
        return compare("mdpo", self.comparisons, policy, reference)
