"""Contrast of whole images with texts that are nearly right and with texts that say the same."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mllm_align.contract import Needs, Outcome, Signals, Term
from mllm_align.objectives.contrast_kernels import softmax_contrast, takes_part
from mllm_align.objectives.pairs import Compared
from mllm_align.objectives.preference import check_weights
from mllm_align.objectives.summaries import (
    AroundContrast,
    info_nce_with,
    paraphrase_vectors,
    paraphrases_of,
    said_of,
    usual,
)
from mllm_align.objectives.temperature import bounded_scale


class TSVLC(AroundContrast):
    """Structured negatives and paraphrases, TSVLC (Doveh et al., 2023), https://arxiv.org/abs/2211.11733

    Each row brings texts that are false of its image though near its own, and paraphrases of its own. The first are
    further columns for every image, and a softmax of an image over its own text and its own negatives alone; the
    second are what image and text each find among the paraphrases of the batch.

    Args:
        contrast_weight: Of the contrast over all texts.
        negative_weight: Of the softmax over a row's own.
        paraphrase_weight: Of that over paraphrases; 0 for rows without them.
        **options: Of `InfoNCE`: image, text (the column "caption"), image_prompt, text_prompt, temperature and others,
            some of which are for the contrast alone; not negatives, which are there always.

    Needs:
        Embeddings of an image column, of a text, and of the texts in columns "negatives" and "positives" (an empty
        list for none); no views, no reference.

    Shapes:
        Features (N, d), one a row of image and text, any number of the others; computed in float32 at least. Terms:
        "contrast", which is that of `InfoNCE`; "own_negatives", sum over the rows that have negatives, count their
        number; "paraphrases", sum over the rows that have some, where another row has too, of the mean of image and
        text, count their number. Metrics: those of `InfoNCE`.

    Example:
        >>> from mllm_align.contract import Ragged
        >>> objective = TSVLC()
        >>> eye, rows = torch.eye(4), torch.arange(2)
        >>> values = {"image": eye[:2], "text": eye[:2], "negatives": eye[2:], "positives": eye[:2]}
        >>> features = {
        ...     feature.name: Ragged(own, rows)
        ...     for feature, own in zip(objective.needs.features, values.values(), strict=True)
        ... }
        >>> outcome = objective(Signals({}, {}, features=features, sources=("a", "a")), None)
        >>> {term.name: int(term.count) for term in outcome.terms}, outcome.loss.item() < 1e-4
        ({'contrast': 2, 'own_negatives': 2, 'paraphrases': 2}, True)

    Relations:
        `SVLC` is this for regions, without paraphrases. The contrast alone is `InfoNCE.negclip`. As there, rows that
        share a text or an image are not each other's negatives, nor is a listed text that of a row whose own it is, or
        its image's; paraphrases of such rows, and those that read as a text of them, are none either.

    Deviations:
        The paper has one negative, made while it trains, and one paraphrase a text; here both are data, as many as
        there are: of several paraphrases each is found against those of other rows. Its vectors are CLIP's.
    """

    def __init__(
        self,
        contrast_weight: float = 1.0,
        negative_weight: float = 1.0,
        paraphrase_weight: float = 1.0,
        **options: Any,
    ) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        weights = {
            "contrast_weight": contrast_weight,
            "negative_weight": negative_weight,
            "paraphrase_weight": paraphrase_weight,
        }
        check_weights("TSVLC", **weights)
        self.contrast_weight, self.negative_weight, self.paraphrase_weight = weights.values()
        chosen = {"negatives": True, **usual(options)}
        self.contrast = info_nce_with("TSVLC", options, chosen, kept=("negatives",))
        self.paraphrases = paraphrases_of(self.contrast.pairs) if paraphrase_weight else None

    @property
    def needs(self) -> Needs:
        """Images, texts, what is false of an image, and what else is true."""
        further = () if self.paraphrases is None else (self.paraphrases,)
        return self.contrast.needs | Needs(features=further)

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The terms and metrics of one batch."""
        outcome = self.contrast(policy, reference)
        (plain,) = outcome.terms
        found = self.contrast.pairs(policy)
        terms = [plain._replace(name="contrast", weight=self.contrast_weight)]
        nothing = 0 * plain.sum, 0 * plain.count
        with torch.autocast(plain.sum.device.type, enabled=False):
            scale = bounded_scale(self.contrast.log_scale)
            own = self._own_negatives(found.at(), scale) if found is not None else nothing
            terms.append(Term("own_negatives", self.negative_weight, *own))
            if self.paraphrases is not None:
                said = self._paraphrases(policy, found, scale) if found is not None else nothing
                terms.append(Term("paraphrases", self.paraphrase_weight, *said))
        return Outcome(tuple(terms), outcome.metrics)

    def _own_negatives(self, found: Compared, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of losses and number of rows: of each image the softmax over its own text and its own negatives."""
        row = torch.arange(len(found.present), device=found.images.device)
        mine = (row[:, None] == found.owner[None, :]) & found.present[:, None] & ~found.own_text[None, :]
        right = (found.images * found.texts).sum(dim=1, keepdim=True)
        among = torch.cat([right, found.images @ found.negatives.T], dim=1)
        first = (torch.arange(among.shape[1], device=row.device) == 0).expand_as(among)
        losses = softmax_contrast(scale * among, first, torch.cat([torch.zeros_like(mine[:, :1]), mine], dim=1))
        return losses.sum(), mine.any(dim=1).sum()

    def _paraphrases(self, policy: Signals, found: Compared, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The same of each image and of each text, which find their paraphrases among all."""
        vectors, owner = paraphrase_vectors(self.contrast.pairs, policy, found)
        keys, unit = F.normalize(vectors, dim=1), found.at()
        own = torch.arange(len(found.present), device=keys.device)[:, None] == owner[None, :]
        counts = found.present[:, None] & found.present[owner][None, :]
        weight, negative = (own & counts).to(keys.dtype), ~own & counts
        said = said_of(self.contrast.pairs, policy, found)
        if said is not None:
            negative &= ~said[:, len(found.present) :]
        sides = [softmax_contrast(scale * side @ keys.T, weight, negative) for side in (unit.images, unit.texts)]
        return 0.5 * (sides[0] + sides[1]).sum(), takes_part(weight, negative).sum()
