"""Region-text contrast beside finding the box of a phrase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mllm_align.contract import Feature, Needs, Outcome, Ragged, Regions, Signals, Term
from mllm_align.objectives.boxes import centres, corners, overlap_of
from mllm_align.objectives.host import sent
from mllm_align.objectives.options import WithOptions
from mllm_align.objectives.padding import padded, places_by_row, rows_of_entries
from mllm_align.objectives.preference import check_switches, check_weights
from mllm_align.objectives.prompter import BoxPrompter, Prompter
from mllm_align.objectives.region_text import RegionText

TOKENS, REGIONS = "image_tokens:image", "regions:image"
WIDTH = 256


class ClocLike(WithOptions):
    """Region-text contrast and boxes of phrases, after CLOC (Chen et al., 2024), https://arxiv.org/abs/2410.02746

    Beside `RegionText`, each phrase looks by the cosines of that contrast for its tokens in the image, and a small
    head says from what it finds where it is: L1 between centre, width and height as DETR has it, and generalised IoU.
    The tokens must then hold what is where.

    Args:
        contrast_weight: Of the contrast.
        l1_weight: Of L1, the sum over the four numbers.
        giou_weight: Of one less the generalised IoU.
        prompted: Whether a region's vector is found from its box's corners by attention over the tokens of its image
            (`BoxPrompter`, after CLOC's promptable embeddings), and not the mean of those that it covers. It then has
            a say in what is around it, and its own tokens are less bound to hold what it is.
        **options: Of `RegionText`.

    Needs:
        What `RegionText` needs (`prompted`, the texts alone), and all tokens of a row's images. Rows need `objects`
        with texts, and one image: of several the tokens do not say which is whose, and the collator refuses the row.

    Shapes:
        Features (N, d), computed in float32 at least. Terms: "region_text" as there; "box_l1" and "box_giou": sums
        over the regions whose text names no other region of their image (where it does, there is no one box to find),
        counts their number. Metrics: those of `RegionText`, and of each such region "box_iou" (N,) and whether it is
        above one half, "box_found" (N,).

    Example:
        >>> from mllm_align.contract import Ragged
        >>> objective = ClocLike(dim=None)
        >>> objective.set_widths({feature.name: 4 for feature in objective.needs.features})
        >>> told = Regions((0,), (0,), ((0.1, 0.1, 0.4, 0.5),), ("",), ("a cup",), ("",))
        >>> values = Ragged(torch.ones(1, 4), torch.zeros(1, dtype=torch.long))
        >>> features = {feature.name: values for feature in objective.needs.features}
        >>> outcome = objective(Signals({}, {}, features=features, sources=("x",), regions={"image": told}), None)
        >>> {term.name: int(term.count) for term in outcome.terms}
        {'region_text': 0, 'box_l1': 1, 'box_giou': 1}

    Relations:
        RegionText alone is this with `l1_weight=0, giou_weight=0`. With frozen tower and projector the image tokens do
        not learn: train the projector or put LoRA on the tower.

    Deviations:
        There is no public code of CLOC, and what could not be verified is chosen here: the weights (DETR's 5 and 2
        beside 1), the head (one attention by the contrast's cosines, width 256), region vectors (means of tokens by
        default; with `prompted` one attention, where CLOC's Prompter is one module for boxes and phrases), all regions
        of a row instead of a few drawn ones, equal texts alone as no negatives (`text_similarity` leaves out near
        ones, by vectors that train). CLOC trains a CLIP from scratch beside its image-text loss.
    """

    def __init__(
        self,
        contrast_weight: float = 1.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        prompted: bool = False,
        **options: Any,
    ) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        weights = {"contrast_weight": contrast_weight, "l1_weight": l1_weight, "giou_weight": giou_weight}
        check_weights("ClocLike", **weights)
        check_switches("ClocLike", prompted=prompted)
        if "columns" in options:
            raise ValueError("ClocLike: phrases are looked for on a row's own image: leave columns out")
        self.contrast_weight, self.l1_weight, self.giou_weight = contrast_weight, l1_weight, giou_weight
        self.contrast = RegionText(**options)
        self.prompted = prompted
        self.prompter: Prompter | None = None
        self.box_prompter: BoxPrompter | None = None

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Makes the heads.

        Args:
            widths: Of each feature, by name.
        """
        self.contrast.set_widths({**widths, REGIONS: widths[TOKENS]})
        if self.prompted and self.box_prompter is None:
            self.box_prompter = BoxPrompter(widths[TOKENS], WIDTH)
        if self.prompter is None:
            self.prompter = Prompter(widths["region_texts:image"], widths[TOKENS], WIDTH)

    @property
    def needs(self) -> Needs:
        """Regions, their texts, and all tokens."""
        own = self.contrast.needs.features
        kept = tuple(feature for feature in own if not (self.prompted and feature.name == REGIONS))
        return Needs(features=(*kept, Feature(TOKENS, "projector", "image", pooling="tokens")))

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The terms and metrics of one batch."""
        told = policy.regions.get("image", Regions())
        named = _with_one_box(told)
        if self.prompter is None:
            raise ValueError("ClocLike: its heads are not made: call set_widths with the width of each feature")
        if self.box_prompter is not None and told:
            policy = self._with_vectors(self.box_prompter, policy, told)
        contrast = self.contrast(policy, reference)
        (term,) = contrast.terms
        if self.box_prompter is not None:
            # On every rank, whether or not it has a region with a text.
            unused = torch.stack([parameter.sum() for parameter in self.box_prompter.parameters()]).sum()
            term = term._replace(sum=term.sum + 0 * unused)
        if not named:
            zero = 0 * torch.stack([parameter.sum() for parameter in self.prompter.parameters()]).sum()
            losses, count, metrics = {"l1": zero, "giou": zero}, torch.zeros_like(term.count), {}
        else:
            found, target = self._boxes(self.prompter, policy, told, named)
            iou, giou = overlap_of(corners(found), target)
            losses = {"l1": (found - centres(target)).abs().sum(), "giou": (1 - giou).sum()}
            count = torch.ones_like(iou).detach().sum()
            metrics = {"box_iou": iou.detach(), "box_found": (iou.detach() > 0.5).to(iou.dtype)}
        terms = (
            term._replace(weight=self.contrast_weight),
            Term("box_l1", self.l1_weight, losses["l1"], count),
            Term("box_giou", self.giou_weight, losses["giou"], count),
        )
        return Outcome(terms, {**contrast.metrics, **metrics})

    @staticmethod
    def _with_vectors(prompter: BoxPrompter, policy: Signals, told: Regions) -> Signals:
        """What was measured, and the vectors of the regions as a feature, as if they had been measured, too."""
        tokens = policy.features[TOKENS].values
        rows = list(dict.fromkeys(told.row))
        groups = places_by_row(told.row, rows)
        boxes = sent(torch.tensor(told.boxes, dtype=torch.float32).clamp(0, 1), tokens.device)
        with torch.autocast(tokens.device.type, enabled=False):
            asked, _ = padded(boxes, groups)
            known, there = padded(_upcast(tokens), places_by_row(rows_of_entries(policy, TOKENS), rows))
            found = prompter(asked, known, there).flatten(0, 1)
        places = {own: row * asked.shape[1] + n for row, group in enumerate(groups) for n, own in enumerate(group)}
        index = sent(torch.tensor([places[number] for number in range(len(told))]), found.device)
        row = sent(torch.tensor(told.row), found.device)
        return replace(policy, features={**policy.features, REGIONS: Ragged(found[index], row)})

    def _boxes(self, prompter: Prompter, policy: Signals, told: Regions, named: list[int]) -> tuple[Tensor, Tensor]:
        """(N, 4) twice: the boxes found as centre and size, and the corners of the true ones."""
        phrases, tokens = policy.features["region_texts:image"].values, policy.features[TOKENS].values
        rows = sorted({told.row[place] for place in named})
        groups = places_by_row([told.row[place] for place in named], rows)
        order = [named[number] for own in groups for number in own]
        with torch.autocast(tokens.device.type, enabled=False):
            asked, is_asked = padded(_upcast(phrases), [[named[number] for number in own] for own in groups])
            known, there = padded(_upcast(tokens), places_by_row(rows_of_entries(policy, TOKENS), rows))
            sides = (self.contrast.unit("texts", asked), self.contrast.unit("regions", known))
            found = prompter(asked, known, sides[0] @ sides[1].transpose(1, 2), there)
        boxes = torch.tensor([told.boxes[place] for place in order], dtype=found.dtype).clamp(0, 1)
        # Picked by place: a mask would make the host wait to learn how many it has.
        width = is_asked.shape[1]
        flat = [group * width + number for group, own in enumerate(groups) for number in range(len(own))]
        return found.flatten(0, 1)[sent(torch.tensor(flat), found.device)], sent(boxes, found.device)


def _with_one_box(told: Regions) -> list[int]:
    """The regions with a text that no other region of their image has.

    Raises:
        ValueError: If a row has several images.
    """
    if any(told.image):
        raise ValueError(
            "ClocLike: a row has regions on its second image, but a phrase is looked for on one: give each image a "
            "row of its own"
        )
    names = [(row, text.casefold()) for row, text in zip(told.row, told.texts, strict=True)]
    count = Counter(names)
    return [place for place, name in enumerate(names) if name[1] and count[name] == 1]


def _upcast(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
