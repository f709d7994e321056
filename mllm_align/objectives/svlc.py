"""Region-text contrast with texts that are nearly right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mllm_align.contract import Feature, Needs, Outcome, Regions, Signals, Term
from mllm_align.objectives.contrast_kernels import softmax_contrast
from mllm_align.objectives.host import sent
from mllm_align.objectives.preference import check_weights
from mllm_align.objectives.region_text import Compared, RegionText


class SVLC(nn.Module):
    """Structured negatives of TSVLC, for regions (Doveh et al., 2023), https://arxiv.org/abs/2211.11733

    Each region brings texts that are false of it though near its own: a colour, a size, a relation changed. They are
    further columns of the softmax of every region of the batch; and a second softmax is over a region's own text and
    its own negatives alone.

    Args:
        contrast_weight: Of the contrast over all texts.
        negative_weight: Of the softmax over a region's own.
        **options: Of `RegionText`; the loss is the softmax, and one side of it at least is "region_to_text".

    Needs:
        What `RegionText` needs of its columns, and the texts of their negatives. Rows need `objects` with texts, which
        may list `negatives`. A whole picture is an object with the box 0, 0, 1, 1.

    Shapes:
        Features (N, d), computed in float32 at least. Terms: "region_text" as there; "own_negatives": sum over the
        regions that have negatives, count their number. Metrics: those of `RegionText`, and for each such region
        whether its text is nearer than all of its negatives, "own_accuracy" (N,).

    Example:
        >>> from mllm_align.contract import Ragged
        >>> objective = SVLC(dim=None)
        >>> told = Regions((0,), (0,), ((0, 0, 1, 1),), ("",), ("a red cup",), ("",), (), (("a blue cup",),))
        >>> vectors = (torch.eye(2)[:1], torch.eye(2)[:1], torch.eye(2)[1:])
        >>> features = {
        ...     feature.name: Ragged(own, torch.zeros(1, dtype=torch.long))
        ...     for feature, own in zip(objective.needs.features, vectors, strict=True)
        ... }
        >>> outcome = objective(Signals({}, {}, features=features, sources=("x",), regions={"image": told}), None)
        >>> {term.name: int(term.count) for term in outcome.terms}, outcome.loss.item() < 1e-4
        ({'region_text': 1, 'own_negatives': 1}, True)

    Relations:
        Without negatives this is RegionText. `TSVLC` is of whole images, and has paraphrases. With frozen tower and
        projector the image tokens do not learn: train the projector or put LoRA on the tower.

    Deviations:
        The paper contrasts whole images under CLIP, makes one negative of each caption by rules or a language model
        while it trains, and adds a third term of paraphrases, which `TSVLC` has; here negatives are data, as many as
        there are. A negative that is another region's own text counts for all but that one.
    """

    def __init__(self, contrast_weight: float = 1.0, negative_weight: float = 1.0, **options: Any) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        check_weights("SVLC", contrast_weight=contrast_weight, negative_weight=negative_weight)
        if options.get("loss", "softmax") != "softmax" or options.get("sides") == "text_to_region":
            raise ValueError("SVLC: negatives are texts that a region chooses among: leave loss and sides as they are")
        self.contrast_weight, self.negative_weight = contrast_weight, negative_weight
        self.contrast = RegionText(**options)

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Makes the heads.

        Args:
            widths: Of each feature, by name.
        """
        self.contrast.set_widths(widths)

    @property
    def needs(self) -> Needs:
        """Regions, their texts, and their negatives."""
        columns = self.contrast.columns
        extra = tuple(Feature(f"region_negatives:{name}", "text", name, pooling="negatives") for name in columns)
        return self.contrast.needs | Needs(features=extra)

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The terms and metrics of one batch."""
        contrast = self.contrast(policy, reference)
        (plain,) = contrast.terms
        found = self.contrast.compared(policy)
        given = self._negatives(policy, found) if found is not None else None
        if found is None or given is None:
            nothing = 0 * plain.sum, 0 * plain.count
            terms = plain._replace(weight=self.contrast_weight), Term("own_negatives", self.negative_weight, *nothing)
            return Outcome(terms, contrast.metrics)
        cosines, negative, mine = given
        losses, anchors = self.contrast.losses(found, (cosines, negative))
        own = found.cosines.diagonal()[:, None]
        both = torch.cat([own, cosines], dim=1)
        first = (torch.arange(both.shape[1], device=both.device) == 0).expand_as(both)
        false = torch.cat([torch.zeros_like(own, dtype=torch.bool), mine], dim=1)
        scale = self.contrast.log_scale.exp().to(both.dtype)
        among_own = softmax_contrast(scale * both, first, false)
        has = mine.any(dim=1)
        right = own[:, 0] > cosines.detach().masked_fill(~mine, -torch.inf).amax(dim=1)
        terms = (
            Term("region_text", self.contrast_weight, losses.sum(), anchors.sum()),
            Term("own_negatives", self.negative_weight, among_own.sum(), has.sum()),
        )
        return Outcome(terms, {**contrast.metrics, "own_accuracy": right[has].float()})

    def _negatives(self, policy: Signals, found: Compared) -> tuple[Tensor, Tensor, Tensor] | None:
        """(N, K) thrice: cosines of regions to all negatives of the batch, which of these count, which are its own."""
        columns = [name for name in self.contrast.columns if f"region_negatives:{name}" in policy.features]
        told = [policy.regions[name] for name in self.contrast.columns if f"regions:{name}" in policy.features]
        if not columns:
            return None
        values = torch.cat([policy.features[f"region_negatives:{name}"].values for name in columns])
        device = values.device
        with torch.autocast(device.type, enabled=False):
            values = values.to(torch.promote_types(values.dtype, torch.float32))
            cosines = found.regions @ self.contrast.unit("texts", values).T
        owner, false, names = _owners(told)
        places = sent(torch.tensor(found.places), device)
        mine = places[:, None] == sent(torch.tensor(owner), device)[None, :]
        said = sent(torch.tensor(names), device)[places]
        negative = said[:, None] != sent(torch.tensor(false), device)[None, :]
        return cosines, negative, mine & negative


def _owners(told: list[Regions]) -> tuple[list[int], list[int], list[int]]:
    """Of each negative its region; and numbers that are equal where texts are, of negatives and of regions."""
    numbers: dict[str, int] = {}
    owner, false = [], []
    texts = [text for regions in told for text in regions.texts]
    negatives = [own for regions in told for own in regions.negatives]
    for place, own in enumerate(negatives):
        for text in own:
            owner.append(place)
            false.append(numbers.setdefault(text.casefold(), len(numbers)))
    return owner, false, [numbers.setdefault(text.casefold(), len(numbers)) for text in texts]
