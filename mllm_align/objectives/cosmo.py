"""Contrast of pooled lower layers beside the language model's own loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mllm_align.contract import Needs, Outcome, Signals
from mllm_align.objectives.next_token import NextToken
from mllm_align.objectives.preference import check_positive
from mllm_align.objectives.summaries import AroundContrast, info_nce_with


class Cosmo(AroundContrast):
    """Contrast beside next-token prediction, COSMO (Wang et al., 2024), https://arxiv.org/abs/2401.00849

    A learned query pools what a lower decoder layer makes of a text, read without the image; an image is the mean of
    its tokens. Linear heads bring both into one space.

    Args:
        contrast_weight: Of the contrast; next-token prediction has weight 1.
        layer: Decoder layers of the text's tokens: a number of them, or a share from 0 to 1.
        dim: Width of the common space.
        interleaved: Sources of rows that take no part in the contrast, such as documents with several images, where a
            text says something of none of them as a whole. Objectives do not see how many images a prompt has; so put
            these rows into a source of their own.
        **options: Of `InfoNCE`, such as temperature and text.

    Needs:
        What `InfoNCE` needs of its sides: image tokens, and all tokens of a text; of interleaved rows neither. View
        (image, chosen). No reference.

    Shapes:
        Terms: "contrast", which is that of `InfoNCE`, and "next_token", that of `NextToken`. Metrics: those of both.

    Example:
        >>> objective = Cosmo(interleaved=("documents",))
        >>> [feature.name for feature in objective.needs_for("captions").features]
        ['image:image', 'text:chosen query layer 0.5']
        >>> objective.needs_for("documents").features
        ()

    Relations:
        `CoCa` has captions twice as heavy, and no pooling. Pooling and heads stay: an embedding is made with them.

    Deviations:
        COSMO pools images by a Perceiver and has them in the upper layers alone, by cross-attention; its text is of
        block 11, here of half of them, whatever their number. Its released setting multiplies cosines by exp(0.2) at
        first, where 0.2 is called a temperature, and without a bound; here the temperature is CLIP's. Its pooling
        attends to padding, too; here there is none. It weighs data sets; that is for `Weighted` to do.
    """

    def __init__(
        self,
        contrast_weight: float = 1.0,
        layer: int | float = 0.5,
        dim: int = 512,
        interleaved: Sequence[str] = (),
        **options: Any,
    ) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        check_positive("Cosmo", contrast_weight=contrast_weight)
        named = (interleaved,) if isinstance(interleaved, str) else tuple(interleaved)
        if not all(isinstance(each, str) and each for each in named):
            raise ValueError(f"Cosmo: interleaved must be names of sources, got {interleaved!r}")
        self.contrast_weight, self.interleaved = contrast_weight, named
        chosen = {"pooling": "query", "layer": layer, "dim": dim}
        self.contrast = info_nce_with("Cosmo", options, chosen)
        self.captions = NextToken(matched=False)

    @property
    def needs(self) -> Needs:
        """Both sides, and the response."""
        return self.contrast.needs | self.captions.needs

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources that it names."""
        return self.interleaved

    def needs_for(self, source: str) -> Needs:
        """What the rows of one source need: interleaved ones have no sides."""
        return self.captions.needs if source in self.interleaved else self.needs

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The terms and metrics of one batch."""
        rows = [row for row, source in enumerate(policy.sources) if source not in self.interleaved]
        compared = policy.select(rows) if len(rows) < len(policy.sources) else policy
        pairs, responses = self.contrast(compared, reference), self.captions(policy, reference)
        terms = pairs.terms[0]._replace(name="contrast", weight=self.contrast_weight), *responses.terms
        return Outcome(terms, {**pairs.metrics, **responses.metrics})
