"""A generative model made an encoder, and kept generative: contrast of short texts, prediction of long ones."""

from __future__ import annotations

from typing import Any

from mllm_align.contract import Needs, Outcome, Signals, Term
from mllm_align.objectives.next_token import OWN, NextToken
from mllm_align.objectives.preference import check_positive
from mllm_align.objectives.summaries import AroundContrast, info_nce_with, usual


class Discriminative(AroundContrast):
    """Discriminative fine-tuning of an LVLM, VladVA (Ouali et al., 2024), https://arxiv.org/abs/2412.04378

    Image and short text are each read before an instruction to sum them up; the state that would predict the answer is
    the vector, and pairs are told apart by it. A long text is predicted behind the image: it is too particular for a
    contrast, which tells it from others within some hundred steps.

    Args:
        contrast_weight: Of the contrast, the sum of both directions.
        next_token_weight: Of prediction.
        **options: Of `InfoNCE`: image, text (the column of short texts, "caption"), image_prompt, text_prompt,
            temperature, negatives (whether rows list texts that are false of their image) and others; not sides.

    Needs:
        Embeddings of an image column and of a short text. Optionally view (image, chosen), the long text; a row needs
        one of both texts. No reference.

    Shapes:
        Terms: "contrast", twice that of `InfoNCE`, whose count is the number of rows with a short text; "next_token",
        that of `NextToken`, whose count is the number of tokens of long ones. Metrics: those of both.

    Example:
        >>> import torch
        >>> from mllm_align.contract import Ragged, View
        >>> objective, own = Discriminative(), View("image", "chosen")
        >>> vectors = Ragged(torch.eye(2), torch.arange(2))
        >>> features = {feature.name: vectors for feature in objective.needs.features}
        >>> logps, counts = {own: torch.tensor([-40.0, 0.0])}, {own: torch.tensor([30, 0])}
        >>> outcome = objective(Signals(logps, counts, features=features, sources=("a", "a")), None)
        >>> [(term.name, int(term.count)) for term in outcome.terms]
        [('contrast', 2), ('next_token', 30)]

    Relations:
        Where the `prompt` of a row is the image's instruction, both terms have one prefix, the image and it: the state
        at its end is the vector, and the long text goes on behind it. The instructions may be made soft prompts, and
        LoRA on the language model has rank and alpha 16 in the paper. `CoCa` predicts the text that it contrasts.

    Deviations:
        The paper tells short from long at 30 tokens; here they are columns. Its instructions and its temperature could
        not be read: the first are IMAGE_PROMPT and TEXT_PROMPT, the other is learned from 0.07, as CLIP's is. It has
        no negatives but those of the batch.
    """

    def __init__(self, contrast_weight: float = 1.0, next_token_weight: float = 1.0, **options: Any) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        check_positive("Discriminative", contrast_weight=contrast_weight, next_token_weight=next_token_weight)
        self.contrast_weight, self.next_token_weight = contrast_weight, next_token_weight
        self.contrast = info_nce_with("Discriminative", options, usual(options), kept=("sides",))
        self.long = NextToken(matched=False)

    @property
    def needs(self) -> Needs:
        """Both sides; and the long text of rows that have one."""
        return self.contrast.needs | Needs(optional=self.long.needs.views)

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The terms and metrics of one batch."""
        pairs = self.contrast(policy, reference)
        (mean,) = pairs.terms
        # Of both directions the paper has the sum.
        contrast = Term("contrast", self.contrast_weight, 2 * mean.sum, mean.count)
        if OWN not in policy.num_tokens:
            nothing = Term("next_token", self.next_token_weight, 0 * mean.sum, 0 * mean.count)
            return Outcome((contrast, nothing), pairs.metrics)
        texts = self.long(policy, reference)
        predicted = texts.terms[0]._replace(weight=self.next_token_weight)
        return Outcome((contrast, predicted), {**pairs.metrics, **texts.metrics})
