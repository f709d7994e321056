"""Region-text contrast with texts that are nearly right, and with texts that say the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mllm_align.contract import Feature, Needs, Outcome, Regions, Signals, Term
from mllm_align.objectives.contrast_kernels import softmax_contrast, takes_part
from mllm_align.objectives.host import sent
from mllm_align.objectives.options import WithOptions
from mllm_align.objectives.preference import check_weights
from mllm_align.objectives.region_masks import similar
from mllm_align.objectives.region_text import Compared, RegionText


class SVLC(WithOptions):
    """Structured negatives of TSVLC, for regions (Doveh et al., 2023), https://arxiv.org/abs/2211.11733

    Each region brings texts that are false of it though near its own: a colour, a size, a relation changed. They are
    further columns of the softmax of every region of the batch; and a second softmax is over a region's own text and
    its own negatives alone. Where regions bring other texts that say the same, region and text each find these among
    those of the batch.

    Args:
        contrast_weight: Of the contrast over all texts.
        negative_weight: Of the softmax over a region's own.
        paraphrase_weight: Of that over paraphrases, half the region's and half its text's; 0 for rows without them.
        **options: Of `RegionText`; the loss is the softmax, and one side of it at least is "region_to_text". What a
            region lists as false of it stays its negative, however similar to its text (`text_similarity`).

    Needs:
        What `RegionText` needs of its columns, the texts of their negatives, and with `paraphrase_weight` those of
        their positives. Rows need `objects` with texts, which may list `negatives` and `positives`. A whole picture is
        an object with the box 0, 0, 1, 1.

    Shapes:
        Features (N, d), computed in float32 at least. Terms: "region_text" as there; "own_negatives": sum over the
        regions that have negatives, count their number; with its weight "paraphrases": the same over the regions that
        have a paraphrase, where another region has one, too. Metrics: those of `RegionText`, and for each region with
        negatives whether its text is nearer than all of them, "own_accuracy" (N,).

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
        Without negatives this is RegionText. `TSVLC` is of whole images. Paraphrases of regions that are not told
        apart (`RegionText`) are no negatives, nor is one that reads as the region's own text or paraphrase. With
        frozen tower and projector the image tokens do not learn: train the projector or put LoRA on the tower.

    Deviations:
        The paper contrasts whole images under CLIP, makes one negative of each caption by rules or a language model
        while it trains, and has one paraphrase; here both are data, as many as there are, and the term of paraphrases
        is off by default. A negative that is another region's own text counts for all but that one.
    """

    def __init__(
        self,
        contrast_weight: float = 1.0,
        negative_weight: float = 1.0,
        paraphrase_weight: float = 0.0,
        **options: Any,
    ) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        check_weights(
            "SVLC",
            contrast_weight=contrast_weight,
            negative_weight=negative_weight,
            paraphrase_weight=paraphrase_weight,
        )
        if options.get("loss", "softmax") != "softmax" or options.get("sides") == "text_to_region":
            raise ValueError("SVLC: negatives are texts that a region chooses among: leave loss and sides as they are")
        self.contrast_weight, self.negative_weight = contrast_weight, negative_weight
        self.paraphrase_weight = paraphrase_weight
        self.contrast = RegionText(**options)

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Makes the heads.

        Args:
            widths: Of each feature, by name.
        """
        self.contrast.set_widths(widths)

    @property
    def needs(self) -> Needs:
        """Regions, their texts, and their negatives and paraphrases."""
        columns = self.contrast.columns
        listed = ("negatives", "positives") if self.paraphrase_weight else ("negatives",)
        extra = (Feature(f"region_{key}:{name}", "text", name, pooling=key) for key in listed for name in columns)
        return self.contrast.needs | Needs(features=tuple(extra))

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The terms and metrics of one batch."""
        contrast = self.contrast(policy, reference)
        (plain,) = contrast.terms
        found = self.contrast.compared(policy)
        given = self._negatives(policy, found) if found is not None else None
        nothing = 0 * plain.sum, 0 * plain.count
        further: tuple[Term, ...] = ()
        if self.paraphrase_weight:
            same = self._paraphrases(policy, found) if found is not None else None
            further = (Term("paraphrases", self.paraphrase_weight, *(same or nothing)),)
        if found is None or given is None:
            terms = plain._replace(weight=self.contrast_weight), Term("own_negatives", self.negative_weight, *nothing)
            return Outcome((*terms, *further), contrast.metrics)
        cosines, negative, mine, close = given
        losses, anchors = self.contrast.losses(found, (cosines, negative, close))
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
        return Outcome((*terms, *further), {**contrast.metrics, "own_accuracy": right[has].float()})

    def _negatives(self, policy: Signals, found: Compared) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """(N, K) each: cosines of regions to all negatives of the batch, which of these count, which are its own, and
        which of the others are too similar to its text."""
        values, owner, false, names = self._listed(policy, "negatives")
        if values is None:
            return None
        device = values.device
        with torch.autocast(device.type, enabled=False):
            keys = self.contrast.unit("texts", values)
            cosines, close = found.regions @ keys.T, similar(found.keys, keys, self.contrast.text_similarity)
        places = sent(torch.tensor(found.places), device)
        mine = places[:, None] == sent(torch.tensor(owner), device)[None, :]
        said = sent(torch.tensor(names), device)[places]
        negative = said[:, None] != sent(torch.tensor(false), device)[None, :]
        return cosines, negative, mine & negative, close & ~mine

    def _paraphrases(self, policy: Signals, found: Compared) -> tuple[Tensor, Tensor] | None:
        """Sum and count: the mean of how a region and how its text find their paraphrases, over those with some."""
        values, owner, said, names = self._listed(policy, "positives")
        if values is None:
            return None
        device = values.device
        # Who has a paraphrase has a text, so it is among those that are compared.
        numbers = {place: number for number, place in enumerate(found.places)}
        own = sent(torch.tensor([numbers[place] for place in owner]), device)
        mine = torch.arange(len(numbers), device=device)[:, None] == own[None, :]
        # A text is no negative of a region of which it is said, as its own text or as a paraphrase.
        numbered = sent(torch.tensor(said), device)
        same_text = sent(torch.tensor([names[place] for place in found.places]), device)[:, None] == numbered[None, :]
        with torch.autocast(device.type, enabled=False):
            repeated = mine.to(values.dtype) @ (numbered[:, None] == numbered[None, :]).to(values.dtype) > 0
            negative = ~(found.alike[:, own] | same_text | repeated)
            keys = self.contrast.unit("texts", values)
            left = negative & ~(found.similar[:, own] | similar(found.keys, keys, self.contrast.text_similarity))
            scale = self.contrast.log_scale.exp().to(keys.dtype)
            sides = [softmax_contrast(scale * side @ keys.T, mine, left) for side in (found.regions, found.keys)]
        return 0.5 * (sides[0] + sides[1]).sum(), takes_part(mine, negative).sum()

    def _listed(self, policy: Signals, key: str) -> tuple[Tensor | None, list[int], list[int], list[int]]:
        """(K, d) what regions list, float32 at least, or None where none does; and what `_owners` says of it."""
        columns = self.contrast.columns
        given = [policy.features[f"region_{key}:{n}"] for n in columns if f"region_{key}:{n}" in policy.features]
        told = _owners([policy.regions[n] for n in columns if f"regions:{n}" in policy.features], key)
        if not given or not told[0]:
            return None, *told
        values = torch.cat([ragged.values for ragged in given])
        return values.to(torch.promote_types(values.dtype, torch.float32)), *told


def _owners(told: list[Regions], key: str) -> tuple[list[int], list[int], list[int]]:
    """Of each listed text its region; and numbers that are equal where texts are, of these and of regions."""
    numbers: dict[str, int] = {}
    owner, listed = [], []
    texts = [text for regions in told for text in regions.texts]
    for place, own in enumerate(own for regions in told for own in getattr(regions, key)):
        for text in own:
            owner.append(place)
            listed.append(numbers.setdefault(text.casefold(), len(numbers)))
    return owner, listed, [numbers.setdefault(text.casefold(), len(numbers)) for text in texts]
