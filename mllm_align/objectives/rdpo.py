"""Re-Align's rDPO, retrieval-augmented DPO (Xing et al., 2025), https://arxiv.org/abs/2502.13146."""

from __future__ import annotations

from dataclasses import dataclass

from mllm_align.contract import Needs, Outcome, Signals
from mllm_align.objectives.comparison import Comparison, compare, switched_on, views_of
from mllm_align.objectives.preference import CHOSEN, CONTRAST_CHOSEN, REJECTED, check_positive, check_weights


@dataclass(frozen=True, kw_only=True)
class RDPO:
    """rDPO, the objective of Re-Align (Xing et al., 2025), https://arxiv.org/abs/2502.13146.

    DPO, plus the same preference between images: the chosen response should gain more under the row's own image than
    under a similar image that was retrieved for it (the contrast image). With log-ratios
    r(y|i) = log pi(y|i) - log pi_ref(y|i) summed over tokens, images i_w (own) and i_l (retrieved), and responses y_w
    and y_l, the loss of a row is the sum of

        -log sigmoid(beta [r(y_w|i_w) - r(y_l|i_w)])    text
        -log sigmoid(beta [r(y_w|i_w) - r(y_w|i_l)])    image

    Args:
        beta: Strength of the tie to the reference, in both.
        text_weight: Of the text loss; 0 leaves it out.
        image_weight: Of the image loss; 0 leaves it out.

    Needs:
        Views (image, chosen), (image, rejected) and (contrast_image, chosen), with reference; none that only a loss
        left out would read, so without the text loss rows need no rejected response.

    Shapes:
        Log-probs and token counts (B,) per view; one term "rdpo", the sum over the N rows that have all views, with
        count N. Metrics, (N,) each: `losses/*` (without weight), `margins/*` (beta times the difference of
        log-ratios) and `accuracies/*` of text and image, `logps/<response>|<image>` the policy's sums.

    Example:
        >>> import torch
        >>> r = dict(zip(RDPO().needs.views, (1.0, -2.0, 0.5)))
        >>> counts = {view: torch.tensor([4]) for view in r}
        >>> policy = Signals({view: torch.tensor([value]) for view, value in r.items()}, counts)
        >>> start = Signals({view: torch.zeros(1) for view in r}, counts)
        >>> RDPO()(policy, start).loss
        tensor(1.2228)

    Relations:
        `MDPO` has the same two losses, with a crop as contrast image, and an anchor; its image loss alone is
        `ImagePreference`. The rejected response of Re-Align's data is the chosen one with segments filled in anew by
        the model looking at the retrieved image.

    Deviations:
        The authors' code scores two of its three log-probs, (image, rejected) and (contrast_image, chosen), not at
        the response's tokens but at the most likely token that is NOT the response's, which can raise y_l and is no
        log-ratio of one sequence; the paper's formula has the response's own, and so has this. The other needs the
        vocabulary's logits, and is not offered.
    """

    beta: float = 0.1
    text_weight: float = 1.0
    image_weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuses values without a meaning."""
        check_positive("RDPO", beta=self.beta)
        check_weights("RDPO", text_weight=self.text_weight, image_weight=self.image_weight)

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The losses that are on."""
        return switched_on(
            Comparison("text", CHOSEN, REJECTED, self.beta, self.text_weight),
            Comparison("image", CHOSEN, CONTRAST_CHOSEN, self.beta, self.image_weight),
        )

    @property
    def needs(self) -> Needs:
        """The views of the losses that are on, and the reference."""
        return Needs(views=views_of(self.comparisons), reference=True)

    def __call__(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The term and the metrics of one batch."""
        return compare("rdpo", self.comparisons, policy, reference)
