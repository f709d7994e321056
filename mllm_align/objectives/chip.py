"""Cross-modal hierarchical DPO, CHiP (Fu et al., 2025), https://arxiv.org/abs/2501.16629, without its KL term."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mllm_align.contract import Needs, Outcome, Signals, Term, View
from mllm_align.objectives.comparison import comparison_metrics
from mllm_align.objectives.preference import (
    CHOSEN,
    CONTRAST_CHOSEN,
    REJECTED,
    check_positive,
    check_switches,
    check_weights,
    log_ratios,
    rows_with,
)
from mllm_align.objectives.segments import changed_log_ratios


def chip_loss(margins: Mapping[str, Tensor], weights: Mapping[str, float], *, joint: bool) -> Tensor:
    """Losses of rows from their margins.

    Args:
        margins: By name, (N,) each, beta included.
        weights: By the same names.
        joint: One sigmoid over the weighted sum of margins, instead of a weighted sum of one sigmoid each.

    Returns:
        (N,) losses.

    Example:
        >>> margins = {"text": torch.tensor([0.3]), "image": torch.tensor([0.05])}
        >>> both = {"text": 1.0, "image": 1.0}
        >>> chip_loss(margins, both, joint=False), chip_loss(margins, both, joint=True)
        (tensor([1.2228]), tensor([0.5334]))
    """
    if joint:
        return -F.logsigmoid(torch.stack([weights[name] * margin for name, margin in margins.items()]).sum(dim=0))
    return torch.stack([-weights[name] * F.logsigmoid(margin) for name, margin in margins.items()]).sum(dim=0)


@dataclass(frozen=True, kw_only=True)
class CHIP:
    """CHiP, cross-modal hierarchical DPO without its KL term (Fu et al., 2025), https://arxiv.org/abs/2501.16629.

    DPO at two levels of the text, and between two images: whole responses, the segments in which they differ, and the
    chosen response under the image against the same under a noisy one (the contrast image). With log-ratios
    r(y|i) = log pi(y|i) - log pi_ref(y|i) summed over tokens, s the same over changed tokens alone, images i_w (own)
    and i_l (noisy), and responses y_w and y_l, the loss of a row is, with its weights, the sum of

        -log sigmoid(beta [r(y_w|i_w) - r(y_l|i_w)])    text
        -log sigmoid(beta [r(y_w|i_w) - r(y_w|i_l)])    image
        -log sigmoid(beta [s(y_w|i_w) - s(y_l|i_w)])    segment

    Args:
        beta: Strength of the tie to the reference, in all.
        text_weight: Of the response loss; 0 leaves it out.
        image_weight: Of the image loss; 0 leaves it out.
        segment_weight: Of the segment loss, the paper's lambda; 0 leaves it out, and no token is measured alone.
        joint: One sigmoid over the sum of the margins, as the authors' code has it: with R = r + segment_weight s
            (changed tokens weigh 1 + segment_weight in every log-prob), -log sigmoid of beta times
            text_weight [R(y_w|i_w) - R(y_l|i_w)] + image_weight [R(y_w|i_w) - R(y_w|i_l)].

    Needs:
        Views (image, chosen), (image, rejected) and (contrast_image, chosen), with reference; none that only a loss
        left out would read; per-token log-probabilities and token ids where segments count. The noise is made by the
        data source: `corrupt: {kind: diffusion_noise, step: 500, space: clip, size: 336}` is the authors', whose tower
        reads 336 pixels, but for what `DiffusionNoise` says of clamping and grain.

    Shapes:
        Log-probs and token counts (B,), token log-probs (number of tokens,) per view; one term "chip", the sum over
        the N rows that have all views, with count N. Metrics, (N,) each: `losses/*` (without weight), `margins/*`
        (beta included) and `accuracies/*` of text, image and segment (jointly: of text and image, over R),
        `logps/<response>|<image>` the policy's sums.

    Example:
        >>> objective = CHIP(segment_weight=0, joint=True)
        >>> r = dict(zip(objective.needs.views, (1.0, -2.0, 0.5)))
        >>> counts = {view: torch.tensor([4]) for view in r}
        >>> policy = Signals({view: torch.tensor([value]) for view, value in r.items()}, counts)
        >>> start = Signals({view: torch.zeros(1) for view in r}, counts)
        >>> objective(policy, start).loss
        tensor(0.5334)

    Relations:
        Without segments and not joint it is `RDPO`, on noise; `MDPO` has an anchor besides. `DDPO` weighs the changed
        tokens inside one score.

    Deviations:
        The token-level term, a KL divergence of the policy from the reference at every position, needs both whole
        distributions and is left out; the code weighs it with .01 all told. The default is the paper's sum of losses,
        not the code's single sigmoid, in which one easy comparison hides the others: `joint` has that. The weights of
        the changed tokens in the authors' scripts, 4 for LLaVA and 2 for Muffin, are segment_weight 3 and 1 (that
        the paper's lambda has these values is unverified). Their LLaVA code multiplies the summed reference log-prob
        of the noisy view by token weights once more, which saturates the sigmoid; not here.
    """

    beta: float = 0.1
    text_weight: float = 1.0
    image_weight: float = 1.0
    segment_weight: float = 3.0
    joint: bool = False

    def __post_init__(self) -> None:
        """Refuses values without a meaning."""
        check_positive("CHIP", beta=self.beta)
        weights = {"text_weight": self.text_weight, "image_weight": self.image_weight}
        check_weights("CHIP", **weights, segment_weight=self.segment_weight)
        check_switches("CHIP", joint=self.joint)
        if self.joint and not self.text_weight:
            raise ValueError("CHIP: joint margins include that of the responses: text_weight must be above 0")

    @property
    def needs(self) -> Needs:
        """The views of the losses that are on, and the reference."""
        compared = [CHOSEN]
        if self.text_weight or self.segment_weight:
            compared.append(REJECTED)
        if self.image_weight:
            compared.append(CONTRAST_CHOSEN)
        return Needs(views=tuple(compared), reference=True, tokens=bool(self.segment_weight))

    def __call__(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The term and the metrics of one batch."""
        views = self.needs.views
        rows = rows_with(policy, views)
        whole = log_ratios(policy, reference, views, rows)
        changed: Mapping[View, Tensor] = {}
        if self.segment_weight and reference is not None:
            compared = views if self.joint else (CHOSEN, REJECTED)
            changed = changed_log_ratios(policy, reference, compared, rows).sums
        weights = {"text": self.text_weight, "image": self.image_weight, "segment": self.segment_weight}
        margins = self._margins(whole, changed)
        losses = chip_loss(margins, weights, joint=self.joint)
        metrics = comparison_metrics(margins)
        metrics |= {f"logps/{view}": policy.logps[view][rows].detach() for view in views}
        count = torch.full((), rows.numel(), device=rows.device)
        return Outcome((Term("chip", 1.0, losses.sum(), count),), metrics)

    def _margins(self, whole: Mapping[View, Tensor], changed: Mapping[View, Tensor]) -> dict[str, Tensor]:
        """Those of the losses that are on."""
        margins = {}
        scores = whole
        if self.joint and changed:
            scores = {view: whole[view] + self.segment_weight * changed[view] for view in whole}
        if self.text_weight:
            margins["text"] = self.beta * (scores[CHOSEN] - scores[REJECTED])
        if self.image_weight:
            margins["image"] = self.beta * (scores[CHOSEN] - scores[CONTRAST_CHOSEN])
        if changed and not self.joint:
            margins["segment"] = self.beta * (changed[CHOSEN] - changed[REJECTED])
        return margins
