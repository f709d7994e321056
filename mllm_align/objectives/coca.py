"""Contrast and captions of the same pairs."""

from __future__ import annotations

from typing import Any

from mllm_align.contract import Needs, Outcome, Signals
from mllm_align.objectives.next_token import NextToken
from mllm_align.objectives.preference import check_positive
from mllm_align.objectives.summaries import AroundContrast, info_nce_with


class CoCa(AroundContrast):
    """Contrastive captioning, CoCa (Yu et al., 2022), https://arxiv.org/abs/2205.01917

    A text's vector is of the lower decoder layers, which see no image; with it the text is told from others, and the
    whole decoder, which sees the image, predicts it.

    Args:
        contrast_weight: Of the contrast.
        caption_weight: Of next-token prediction on the same text.
        layer: Decoder layers of the text's vector: a number of them, or a share from 0 to 1.
        **options: Of `InfoNCE`, such as temperature, dim and text.

    Needs:
        What `InfoNCE` needs of its sides: image tokens, and the state at the end of the text, read without the image.
        View (image, chosen). No reference.

    Shapes:
        Terms: "contrast", which is that of `InfoNCE`, and "caption", that of `NextToken`, whose count is the number of
        response tokens. Metrics: those of both.

    Example:
        >>> import torch
        >>> from mllm_align.contract import Ragged, View
        >>> objective, own = CoCa(), View("image", "chosen")
        >>> vectors = Ragged(torch.eye(2), torch.arange(2))
        >>> features = {feature.name: vectors for feature in objective.needs.features}
        >>> logps, counts = {own: torch.tensor([-4.0, -2.0])}, {own: torch.tensor([3, 1])}
        >>> outcome = objective(Signals(logps, counts, features=features, sources=("a", "a")), None)
        >>> [(term.name, term.weight, int(term.count)) for term in outcome.terms]
        [('contrast', 1.0, 2), ('caption', 2.0, 4)]

    Relations:
        It is `Weighted` of InfoNCE and NextToken; `Cosmo` pools the lower layers' tokens, and `Discriminative` asks
        for a summary. A contrast reaches the lower layers alone: LoRA on upper ones learns of captions.

    Deviations:
        CoCa's lower decoder half is image-free since cross-attention begins above it; a decoder that reads image
        tokens from its first layer on is so where it is given none: the text is read once more, by those layers. The
        paper's text vector is of a token of its own behind the text, and images are pooled by learned queries, one for
        the contrast; here they are the last token's state and the mean of the image's tokens.
    """

    def __init__(
        self, contrast_weight: float = 1.0, caption_weight: float = 2.0, layer: int | float = 0.5, **options: Any
    ) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        check_positive("CoCa", contrast_weight=contrast_weight, caption_weight=caption_weight)
        self.contrast_weight, self.caption_weight = contrast_weight, caption_weight
        self.contrast = info_nce_with("CoCa", options, {"layer": layer})
        self.captions = NextToken(matched=False)

    @property
    def needs(self) -> Needs:
        """Both sides, and the caption."""
        return self.contrast.needs | self.captions.needs

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The terms and metrics of one batch."""
        pairs, captions = self.contrast(policy, reference), self.captions(policy, reference)
        terms = (
            pairs.terms[0]._replace(name="contrast", weight=self.contrast_weight),
            captions.terms[0]._replace(name="caption", weight=self.caption_weight),
        )
        return Outcome(terms, {**pairs.metrics, **captions.metrics})
