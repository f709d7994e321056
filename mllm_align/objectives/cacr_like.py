"""Attraction and repulsion, each with weights of its own among the keys of an anchor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mllm_align.contract import Embedding, Needs, Outcome, Signals, Term
from mllm_align.objectives.nearest import tolerance
from mllm_align.objectives.options import WithOptions
from mllm_align.objectives.preference import check_positive, check_switches, check_weights
from mllm_align.objectives.summaries import paraphrase_vectors, paraphrases_of, said_of, summaries


def weighted_cost(costs: Tensor, counts: Tensor, sharpness: float, detach: bool = False) -> Tensor:
    """The mean cost of each anchor's keys under softmax(sharpness * cost), Zheng et al. (2021)

    https://arxiv.org/abs/2105.03746: with a sharpness above 0 and positives for keys it is what attracts, and what is
    far weighs most; with one below 0 and negatives, its negative repels, and what is near weighs most.

    Args:
        costs: (N, M) of each anchor (rows) and key (columns).
        counts: (N, M) bool, the keys that an anchor has.
        sharpness: Of the weights; 0 for equal ones.
        detach: Whether the weights are constants; else the gradient goes through them, too.

    Returns:
        (N,) means; 0 where an anchor has no key.

    Example:
        >>> weighted_cost(torch.tensor([[0.5, 1.0, 2.0]]), torch.ones(1, 3, dtype=torch.bool), 1.0)
        tensor([1.5584])
    """
    weight = (sharpness * costs).masked_fill(~counts, torch.finfo(costs.dtype).min).softmax(dim=1)
    return torch.where(counts, (weight.detach() if detach else weight) * costs, 0.0).sum(dim=1)


class CacrLike(WithOptions):
    """Contrastive attraction and repulsion, after CACR (Zheng et al., 2021), https://arxiv.org/abs/2105.03746

    The cost of an image and a text is the squared distance of their unit vectors, 2 - 2 cos. An image is drawn to its
    own text and to that text's paraphrases, to the farthest most; and pushed from those of other rows, from the
    nearest most. Each text likewise, to its image and from other rows' images.

    Args:
        t_plus: Sharpness of the weights among positives.
        t_minus: Sharpness of the weights among negatives; the authors have 0.9 or 2, by data set.
        attract_weight: Of the attraction.
        repel_weight: Of the repulsion.
        detach_weights: Whether weights are constants. By default the gradient is that of the formula as it stands, and
            goes through them, too; which of both the authors train with could not be read.
        **options: Of both sides: image, text (the column "caption"), image_prompt, text_prompt, pooling, layer and
            dim, as of `Pairs`.

    Needs:
        Embeddings of an image column, of a text, and of the texts in column "positives" (an empty list for none); no
        views, no reference.

    Shapes:
        Features (N, d), one a row of image and text, any number of paraphrases; computed in float32 at least. Terms:
        "attract" and "repel", sums over the rows with image and text of the mean of both directions, in the second of
        which a row's texts count equally; count their number, for "repel" where there are two at least. Metrics, for
        each such row: "accuracy/image_to_text", whether one of its own texts is nearer than all others,
        "accuracy/text_to_image", whether its image is nearer to its own text than all others (N,); as near is not
        nearer.

    Example:
        >>> from mllm_align.contract import Ragged
        >>> objective = CacrLike()
        >>> rows = torch.arange(2)
        >>> features = {feature.name: Ragged(torch.eye(2), rows) for feature in objective.needs.features}
        >>> outcome = objective(Signals({}, {}, features=features, sources=("a", "a")), None)
        >>> [(term.name, round((term.sum / term.count).item(), 4)) for term in outcome.terms]
        [('attract', 0.0), ('repel', -2.0)]

    Relations:
        Without paraphrases an image has one positive, and its attraction is that cost itself, whatever `t_plus` is.
        InfoNCE pulls and pushes less as a pair is told from the others; here neither fades. Rows that share an image
        or a text are not each other's negatives, nor is what reads as a text of a row with the anchor's image; none of
        it becomes a positive.

    Deviations:
        The paper contrasts views of one image, four of each, with its negatives in the batch or a queue; here they are
        texts that say the same, both directions are taken, and there is no queue.
    """

    # Where a batch without any pair has its loss.
    zero: Tensor

    def __init__(
        self,
        t_plus: float = 1.0,
        t_minus: float = 2.0,
        attract_weight: float = 1.0,
        repel_weight: float = 1.0,
        detach_weights: bool = False,
        **options: Any,
    ) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        check_positive("CacrLike", t_plus=t_plus, t_minus=t_minus)
        check_weights("CacrLike", attract_weight=attract_weight, repel_weight=repel_weight)
        check_switches("CacrLike", detach_weights=detach_weights)
        self.t_plus, self.t_minus, self.detach_weights = t_plus, t_minus, detach_weights
        self.attract_weight, self.repel_weight = attract_weight, repel_weight
        self.pairs = summaries("CacrLike", options)
        self.paraphrases = paraphrases_of(self.pairs)
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    @property
    def needs(self) -> Needs:
        """Images, texts, and what else is true of the images."""
        return Needs(features=(*self.pairs.features, self.paraphrases))

    @property
    def embedding(self) -> Embedding:
        """How an image and a text are embedded after training."""
        return self.pairs.embedding

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Makes the heads, if there are any.

        Args:
            widths: Of each feature, by name.
        """
        self.pairs.set_widths(widths)

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The terms and metrics of one batch."""
        found = self.pairs(policy)
        if found is None:
            given = [policy.features.get(feature.name) for feature in self.needs.features]
            zero = sum((each.values[:0].sum() for each in given if each is not None), self.zero)
            weights = {"attract": self.attract_weight, "repel": self.repel_weight}
            return Outcome(tuple(Term(name, weight, zero, self.zero) for name, weight in weights.items()))
        further, owner = paraphrase_vectors(self.pairs, policy, found)
        texts = torch.cat([found.at().texts, F.normalize(further, dim=1)])
        row = torch.arange(len(found.present), device=texts.device)
        of = torch.cat([row, owner])
        own = row[:, None] == of[None, :]
        said = said_of(self.pairs, policy, found)
        other = ~own if said is None else ~own & ~said
        counts = found.present[of] & found.present[:, None]
        with torch.autocast(texts.device.type, enabled=False):
            costs = 2 - 2 * found.at().images @ texts.T
        attract, repel = (
            self._both_ways(costs, of, counts & keys, sharpness)
            for keys, sharpness in ((own, self.t_plus), (other, -self.t_minus))
        )
        paired = found.present.sum()
        mine, theirs = (costs.detach().masked_fill(~(counts & keys), torch.inf) for keys in (own, other))
        margin, size = 2 * tolerance(costs.dtype), len(row)  # a cost is twice what is left of a cosine
        metrics = {
            "accuracy/image_to_text": theirs.amin(dim=1) - mine.amin(dim=1) > margin,
            "accuracy/text_to_image": theirs[:, :size].amin(dim=0) - costs.detach()[:, :size].diagonal() > margin,
        }
        terms = (
            Term("attract", self.attract_weight, attract.sum(), paired),
            Term("repel", self.repel_weight, -repel.sum(), paired * (paired > 1)),
        )
        return Outcome(terms, {name: right[found.anchors].float() for name, right in metrics.items()})

    def _both_ways(self, costs: Tensor, of: Tensor, counts: Tensor, sharpness: float) -> Tensor:
        """(B,) mean of both directions; of a row's texts as anchors, their mean."""
        towards = weighted_cost(costs, counts, sharpness, self.detach_weights)
        back = weighted_cost(costs.T, counts.T, sharpness, self.detach_weights)
        number = torch.zeros_like(towards).index_add(0, of, torch.ones_like(back))
        return 0.5 * (towards + torch.zeros_like(towards).index_add(0, of, back) / number.clamp(min=1))
