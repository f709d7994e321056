"""Contrast between regions: the same thing in two images, against other things."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm_align.contract import Feature, Needs, Outcome, Regions, Signals, Term
from mllm_align.objectives.preference import check_positive, check_switches

MAX_SCALE = 100.0
COLUMNS, SCOPES = ("image", "contrast_image"), ("pair", "row", "batch")


def region_info_nce(similarities: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """InfoNCE with a set of positives, each against all negatives and no other positive.

    For one positive p it is log(1 + sum_n exp(s_n - s_p)), the form of CoLVA; several are averaged, as in L_out of
    Khosla et al. (2020), https://arxiv.org/abs/2004.11362, less the other positives in the denominator.

    Args:
        similarities: (N, N) scaled similarity of each anchor (rows) to each key (columns).
        positive: (N, N) bool.
        negative: (N, N) bool, nowhere where `positive` is.

    Returns:
        (N,) losses; 0 where an anchor lacks positives or negatives.
    """
    hidden = torch.finfo(similarities.dtype).min
    others = similarities.masked_fill(~negative, hidden).logsumexp(dim=1, keepdim=True)
    losses = F.softplus(others - similarities).masked_fill(~positive, 0).sum(dim=1)
    takes_part = positive.any(dim=1) & negative.any(dim=1)
    return torch.where(takes_part, losses / positive.sum(dim=1).clamp(min=1), 0.0)


class RegionContrast(nn.Module):
    """Object-level contrast on the LVLM's own image tokens, after CoLVA (2025), https://arxiv.org/abs/2501.04670

    Pulls a region towards the region of the same thing (`object_id`) in another image of its row, and away from other
    things. A region is the mean of the tokens that it covers, as the language model reads them.

    Args:
        columns: Image columns whose regions take part: "image" (a row's images, two or more for there to be pairs) and
            "contrast_image".
        negatives: What a region is pushed away from. "pair": the other things in the images that show it too; "row":
            and those in its own image; "batch": and those of all other rows.
        temperature: At the start, 1/100 at the least; similarities are divided by it.
        learn_temperature: Whether it is trained (as its logarithm, kept from going below 1/100).
        normalise: Whether similarity is the cosine; else the dot product.
        overlap: Regions in one image of which one lies within the other by more than this share of its area are not
            told apart: part and whole.

    Needs:
        One feature a column, regions of image tokens; no views, no reference. Rows need `objects` (and
        `contrast_objects`) with ids.

    Shapes:
        Features (N, d), computed in float32 at least; `Signals.regions` tells of each. Term "region_contrast": sum
        over the regions that have a positive and a negative, count their number. Metrics: for each of them whether its
        nearest candidate is a positive, "accuracy" (N,), how far positives are above negatives in similarity, "gap"
        (N,), and "negatives" (N,) their number; "temperature".

    Example:
        >>> from mllm_align.contract import Ragged
        >>> objective = RegionContrast(negatives="pair")
        >>> told = Regions((0,) * 4, (0, 0, 1, 1), ((0, 0, 1, 1),) * 4, ("a", "b", "a", "b"), ("",) * 4, ("",) * 4)
        >>> values = Ragged(torch.eye(2).repeat(2, 1), torch.zeros(4, dtype=torch.long))
        >>> signals = Signals({}, {}, features={"regions:image": values}, sources=("x",), regions={"image": told})
        >>> round(objective(signals, None).loss.item(), 4) < 1e-4
        True

    Relations:
        InfoNCE contrasts whole images with texts. With frozen tower and projector nothing but the temperature learns:
        train the projector or put LoRA on the tower.

    Deviations:
        CoLVA's anchors are features of a further encoder (RADIO) behind an adapter, its keys frozen ones of the LVLM,
        its similarity a raw dot product (`normalise=False, temperature=1.0, learn_temperature=False,
        negatives="pair"` is that loss on these features). Its regions of nothing count as zero vectors; here they are
        left out, and so are regions without another thing to tell them from, which it averages in with loss 0. By its
        own ablation the contrast within the LVLM's tower brings 1.7 of the 8.1 points that it brings with the encoder.
    """

    def __init__(
        self,
        columns: Sequence[str] = ("image",),
        negatives: str = "batch",
        temperature: float = 0.07,
        learn_temperature: bool = True,
        normalise: bool = True,
        overlap: float = 0.5,
    ) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        check_positive("RegionContrast", temperature=temperature, overlap=overlap)
        check_switches("RegionContrast", learn_temperature=learn_temperature, normalise=normalise)
        if temperature < 1 / MAX_SCALE:
            raise ValueError(f"RegionContrast: temperature must be at least {1 / MAX_SCALE}, got {temperature!r}")
        if negatives not in SCOPES:
            raise ValueError(f"RegionContrast: negatives must be one of {', '.join(SCOPES)}, got {negatives!r}")
        named = (columns,) if isinstance(columns, str) else tuple(columns)
        if not named or any(column not in COLUMNS for column in named):
            raise ValueError(f"RegionContrast: columns must be among {', '.join(COLUMNS)}, got {columns!r}")
        self.columns, self.negatives, self.normalise, self.overlap = named, negatives, normalise, overlap
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learn_temperature)

    @property
    def needs(self) -> Needs:
        """Regions of each column."""
        return Needs(
            features=tuple(Feature(f"regions:{name}", "projector", name, pooling="regions") for name in self.columns)
        )

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The term and metrics of one batch."""
        with torch.no_grad():
            # The parameter itself: a clamped output has no gradient, and the temperature could never rise again.
            self.log_scale.clamp_(max=math.log(MAX_SCALE))
        scale = self.log_scale.exp()
        found = {name: policy.features.get(f"regions:{name}") for name in self.columns}
        there = {name: ragged for name, ragged in found.items() if ragged is not None and ragged.row.numel()}
        told = {name: policy.regions[name] for name in there}
        if not told:
            return Outcome((Term("region_contrast", 1.0, 0 * scale, 0 * scale.detach()),))
        values = torch.cat([ragged.values for ragged in there.values()])
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        positive, negative = self.pairs(told, values.device)
        vectors = F.normalize(values, dim=1) if self.normalise else values
        similarities = vectors @ vectors.T
        losses = region_info_nce(scale.to(values.dtype) * similarities, positive, negative)
        anchors = positive.any(dim=1) & negative.any(dim=1)
        term = Term("region_contrast", 1.0, losses.sum(), anchors.sum())
        return Outcome((term,), self._metrics(similarities.detach(), positive, negative, anchors, scale))

    def pairs(self, told: Mapping[str, Regions], device: Any) -> tuple[Tensor, Tensor]:
        """(N, N) bool twice: of each region (rows) its positives, and its negatives.

        Positive is one thing in two images of a row. Neither are a region itself, one of the same text, which is a
        second thing of that name or the same one, and two regions of a row without an id, of which nobody says whether
        they are one thing.
        """
        row, picture, thing, text, boxes = _told(told, device)
        same_row, same_picture = _equal(row), _equal(picture)
        same_thing, same_text = _equal(thing) & same_row, _equal(text) & (text != 0)
        positive = same_thing & ~same_picture & (thing != 0)
        across = torch.ones_like(same_row) if self.negatives == "batch" else same_row
        within = torch.zeros_like(same_row) if self.negatives == "pair" else _contained(boxes) <= self.overlap
        negative = across & ~same_thing & ~same_text & (~same_picture | within)
        return positive, negative

    @staticmethod
    def _metrics(
        similarities: Tensor, positive: Tensor, negative: Tensor, anchors: Tensor, scale: Tensor
    ) -> dict[str, Tensor]:
        hidden = torch.finfo(similarities.dtype).min
        best = similarities.masked_fill(~positive, hidden).amax(dim=1)
        worst = similarities.masked_fill(~negative, hidden).amax(dim=1)
        means = [(similarities * mask).sum(1) / mask.sum(1).clamp(min=1) for mask in (positive, negative)]
        told = {
            "accuracy": (best > worst).float(),
            "gap": means[0] - means[1],
            "negatives": negative.sum(dim=1).float(),
        }
        return {name: value[anchors] for name, value in told.items()} | {"temperature": 1 / scale.detach()}


def _told(told: Mapping[str, Regions], device: Any) -> tuple[Tensor, ...]:
    """(N,) numbers that are equal where rows, images, ids and texts are, 0 for no id and no text; (N, 4) boxes."""
    rows = [row for regions in told.values() for row in regions.row]
    pictures = [
        (column, *place) for column, regions in told.items() for place in zip(regions.row, regions.image, strict=True)
    ]
    things = [name for regions in told.values() for name in regions.object_ids]
    texts = [text.casefold() for regions in told.values() for text in regions.texts]
    boxes = [box for regions in told.values() for box in regions.boxes]
    columns = [torch.tensor(_numbers(values), dtype=torch.long) for values in (rows, pictures, things, texts)]
    return (*(column.to(device) for column in columns), torch.tensor(boxes).reshape(-1, 4).to(device))


def _numbers(values: Sequence[Hashable]) -> list[int]:
    known: dict[Hashable, int] = {"": 0}
    return [known.setdefault(value, len(known)) for value in values]


def _equal(values: Tensor) -> Tensor:
    return values[:, None] == values[None, :]


def _contained(boxes: Tensor) -> Tensor:
    """(N, N) the share of the smaller of two boxes that lies in the other."""
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    smaller = torch.minimum(area[:, None], area[None, :]).clamp(min=torch.finfo(boxes.dtype).tiny)
    return (high - low).clamp(min=0).prod(dim=2) / smaller
