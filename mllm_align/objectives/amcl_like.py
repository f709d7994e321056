"""Contrast by several heads, each with a temperature of its own for every pair."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm_align.contract import Embedding, Needs, Outcome, Signals, Term
from mllm_align.objectives.nearest import nearest
from mllm_align.objectives.options import WithOptions
from mllm_align.objectives.preference import check_positive
from mllm_align.objectives.summaries import summaries
from mllm_align.objectives.temperature import MAX_SCALE, check_temperature


def spread_penalty(log_temperature: Tensor, usual: float) -> Tensor:
    """log(t / t0) + t0 / t - 1, which is 0 at t0 and above it everywhere else.

    It is, up to a constant, the negative log-likelihood of the variance t where squared deviations are t0 on average:
    the logarithm keeps t from growing, the other part from vanishing.

    Args:
        log_temperature: Logarithms of t, any shape.
        usual: t0.
    """
    above = log_temperature - math.log(usual)
    return above + (-above).exp() - 1


class AmclLike(WithOptions):
    """Adaptive multi-head contrast, after AMCL (Wang et al., 2023), https://arxiv.org/abs/2310.05615

    Each of several linear heads brings image and text into a space of its own, where InfoNCE is taken; the temperature
    that a head divides a pair's cosine by is predicted of the two vectors, so that pairs that are alike in one respect
    alone need not be alike in all.

    Args:
        heads: How many; the authors have 4 to 8.
        dim: Width of each head's space.
        temperature: Of all pairs at the start, 1/100 at the least; no pair's goes below that.
        spread_weight: Of what keeps temperatures about there.
        **options: Of both sides: image, text (the column "caption"), image_prompt, text_prompt, pooling and layer, as
            of `Pairs`.

    Needs:
        Embeddings of an image column and of a text; no views, no reference.

    Shapes:
        Features (N, d), one a row; computed in float32 at least. Terms, whose count is the number of rows with both:
        "contrast", the sum over rows and heads of symmetric InfoNCE; "spread", the sum over rows and heads of the
        penalty's mean over the row's pairs. Metrics, for each such row: whether its partner is the nearest by the mean
        cosine of the heads, "accuracy/image_to_text" and "accuracy/text_to_image" (N,), and how many others are as
        near, "ties" (N,), for which nothing is the nearest; "temperature" (N, M), which each of the M heads predicts
        of the pair.

    Example:
        >>> from mllm_align.contract import Ragged
        >>> objective = AmclLike(heads=2, dim=4)
        >>> objective.set_widths({feature.name: 3 for feature in objective.needs.features})
        >>> vectors = Ragged(torch.randn(2, 3), torch.arange(2))
        >>> features = {feature.name: vectors for feature in objective.needs.features}
        >>> outcome = objective(Signals({}, {}, features=features, sources=("a", "a")), None)
        >>> [(term.name, int(term.count)) for term in outcome.terms], outcome.terms[1].sum.item()
        ([('contrast', 2), ('spread', 2)], 0.0)

    Relations:
        One head whose temperatures are left alone is InfoNCE with a linear head; as there, rows that share a text or
        an image are not each other's negatives. After training an embedding is the vectors of all heads, one behind
        the other.

    Deviations:
        How the paper predicts temperatures, and how it keeps them finite, could not be read. Chosen here: a logarithm
        of a temperature is that of `temperature` plus a bilinear form of the two unit vectors, which is 0 at first.
        The paper reads a temperature as a variance, whose likelihood has its logarithm for a penalty; but below a
        softmax that penalty alone would be least at 0. So it is the likelihood of a variance that is known to be about
        `temperature` (`spread_penalty`). The paper contrasts views of one image; here there is one set of heads for
        each side, and they are linear.
    """

    def __init__(
        self, heads: int = 4, dim: int = 128, temperature: float = 0.07, spread_weight: float = 1.0, **options: Any
    ) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        check_positive("AmclLike", temperature=temperature, spread_weight=spread_weight)
        check_temperature("AmclLike", temperature)
        for name, value in (("heads", heads), ("dim", dim)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"AmclLike: {name} must be a whole number above 0, got {value!r}")
        self.num_heads, self.temperature, self.spread_weight = heads, temperature, spread_weight
        self.pairs = summaries("AmclLike", {**options, "dim": heads * dim})
        self.bilinear = nn.Parameter(torch.zeros(heads, dim, dim))
        self.offset = nn.Parameter(torch.zeros(heads))

    @property
    def needs(self) -> Needs:
        """Images and texts."""
        return Needs(features=self.pairs.features)

    @property
    def embedding(self) -> Embedding:
        """How an image and a text are embedded after training."""
        return self.pairs.embedding

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Makes the heads.

        Args:
            widths: Of each feature, by name.
        """
        self.pairs.set_widths(widths)

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The terms and metrics of one batch."""
        found = self.pairs(policy)
        count = found.present.sum() if found is not None else 0 * self.offset.detach().sum()
        if found is None or not len(found.anchors):
            # Also where every row lacks one side: the parameters stay in the graph.
            zero = 0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()
            return Outcome((Term("contrast", 1.0, zero, count), Term("spread", self.spread_weight, zero, count)))
        images, texts = (self._by_head(each[found.anchors]) for each in (found.images, found.texts))
        with torch.autocast(images.device.type, enabled=False):
            cosines = images @ texts.transpose(1, 2)
            likeness = images @ self.bilinear.to(images.dtype) @ texts.transpose(1, 2)
            log_temperature = likeness + self.offset.to(images.dtype)[:, None, None] + math.log(self.temperature)
            logits = cosines * (-log_temperature).clamp(max=math.log(MAX_SCALE)).exp()
            own = logits.diagonal(dim1=1, dim2=2)
            mean = cosines.detach().mean(dim=0)
            if found.repeated is not None:
                alike = found.repeated.alike(found.anchors, found.anchors)
                logits, mean = (each.masked_fill(alike, torch.finfo(each.dtype).min) for each in (logits, mean))
            losses = 0.5 * (logits.logsumexp(dim=1) + logits.logsumexp(dim=2)) - own
            spread = spread_penalty(log_temperature, self.temperature).mean(dim=2)
        metrics = nearest(mean, found.present[found.anchors]).metrics(torch.arange(len(mean), device=mean.device))
        metrics["temperature"] = log_temperature.detach().diagonal(dim1=1, dim2=2).T.exp().clamp(min=1 / MAX_SCALE)
        terms = Term("contrast", 1.0, losses.sum(), count), Term("spread", self.spread_weight, spread.sum(), count)
        return Outcome(terms, metrics)

    def _by_head(self, vectors: Tensor) -> Tensor:
        """(M, N, dim) unit vectors of (N, M * dim)."""
        return F.normalize(vectors.unflatten(1, (self.num_heads, -1)), dim=2).transpose(0, 1)
