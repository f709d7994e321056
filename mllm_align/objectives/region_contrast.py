"""Contrast between regions: the same thing in two images, against other things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mllm_align.contract import Feature, Needs, Outcome, Regions, Signals, Term
from mllm_align.objectives.columns import image_columns
from mllm_align.objectives.contrast_kernels import softmax_contrast
from mllm_align.objectives.host import sent
from mllm_align.objectives.memory import Memory, check_size, numbers_of
from mllm_align.objectives.options import WithOptions
from mllm_align.objectives.preference import check_positive, check_switches
from mllm_align.objectives.region_masks import RegionTable, contained, equal, table_of
from mllm_align.objectives.temperature import bounded_scale, check_temperature, log_scale_of

SCOPES = ("pair", "row", "batch")


class RegionContrast(WithOptions):
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
        same_class: Whether things of one class are told apart.
        decoupled: Whether a positive is left out of its own denominator (DCL, Yeh et al., 2022,
            https://arxiv.org/abs/2110.06848); the loss may then be below zero.
        memory: Regions of earlier batches that are negatives, too (`Memory`); 0 for none.

    Needs:
        One feature a column, regions of image tokens; no views, no reference. Rows need `objects` (and
        `contrast_objects`) with ids.

    Shapes:
        Features (N, d), computed in float32 at least; `Signals.regions` tells of each. Term "region_contrast": sum
        over the regions that have a positive and a negative (with a memory: a positive), count their number. Metrics:
        for each of them whether its nearest candidate is a positive, "accuracy" (N,), how far positives are above
        negatives in similarity, "gap" (N,), and "negatives" (N,) their number; "temperature".

    Example:
        >>> from mllm_align.contract import Ragged
        >>> objective = RegionContrast(negatives="pair")
        >>> told = Regions((0,) * 4, (0, 0, 1, 1), ((0, 0, 1, 1),) * 4, ("a", "b", "a", "b"), ("",) * 4, ("",) * 4)
        >>> values = Ragged(torch.eye(2).repeat(2, 1), torch.zeros(4, dtype=torch.long))
        >>> signals = Signals({}, {}, features={"regions:image": values}, sources=("x",), regions={"image": told})
        >>> round(objective(signals, None).loss.item(), 4) < 1e-4
        True

    Relations:
        InfoNCE contrasts whole images with texts. The batch is that of all processes (`gather_negatives`), and
        gradient caching makes room for large ones. With frozen tower and projector nothing but the temperature learns:
        train the projector or put LoRA on the tower.

    Deviations:
        CoLVA's anchors are features of a further encoder (RADIO) behind an adapter, its keys frozen ones of the LVLM,
        its similarity a raw dot product; `RegionContrast.colva()` is that loss on these features. Its regions of
        nothing count as zero vectors; here they are left out, and so are regions without another thing to tell them
        from, which it averages in with loss 0. By its own ablation the contrast within the LVLM's tower brings 1.7 of
        the 8.1 points that it brings with the encoder.
    """

    def __init__(
        self,
        columns: Sequence[str] = ("image",),
        negatives: str = "batch",
        temperature: float = 0.07,
        learn_temperature: bool = True,
        normalise: bool = True,
        overlap: float = 0.5,
        same_class: bool = True,
        decoupled: bool = False,
        memory: int = 0,
    ) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        check_positive("RegionContrast", temperature=temperature, overlap=overlap)
        check_switches(
            "RegionContrast",
            learn_temperature=learn_temperature,
            normalise=normalise,
            same_class=same_class,
            decoupled=decoupled,
        )
        check_temperature("RegionContrast", temperature)
        if negatives not in SCOPES:
            raise ValueError(f"RegionContrast: negatives must be one of {', '.join(SCOPES)}, got {negatives!r}")
        check_size("RegionContrast", memory)
        if memory and negatives != "batch":
            raise ValueError(
                f"RegionContrast: memory={memory} holds other rows' regions, which are no negatives with "
                f"negatives={negatives!r}: leave it at 'batch'"
            )
        named = image_columns("RegionContrast", columns)
        self.columns, self.negatives, self.normalise, self.overlap = named, negatives, normalise, overlap
        self.same_class, self.decoupled, self.memory_size = same_class, decoupled, memory
        self.log_scale = log_scale_of(temperature, learn_temperature)
        self.memory: Memory | None = None

    @classmethod
    def colva(cls, columns: Sequence[str] = ("image",)) -> RegionContrast:
        """CoLVA's loss: raw dot products at temperature 1, against the other things of the paired image alone."""
        return cls(columns, "pair", temperature=1.0, learn_temperature=False, normalise=False)

    @property
    def needs(self) -> Needs:
        """Regions of each column."""
        return Needs(
            features=tuple(Feature(f"regions:{name}", "projector", name, pooling="regions") for name in self.columns)
        )

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Makes room for the memory; before training, when the widths of the features are known."""
        if self.memory_size:
            self.memory = Memory(self.memory_size, widths[f"regions:{self.columns[0]}"])

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The term and metrics of one batch."""
        scale = bounded_scale(self.log_scale)
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
        anchors = positive.any(dim=1)
        if self.memory_size:
            similarities, positive, negative = self._with_memory(
                policy, told, vectors, similarities, positive, negative
            )
        else:
            anchors = anchors & negative.any(dim=1)
        scaled = scale.to(values.dtype) * similarities
        losses = softmax_contrast(scaled, positive, negative, decoupled=self.decoupled)
        term = Term("region_contrast", 1.0, losses.sum(), anchors.sum())
        metrics = found_among(similarities.detach(), positive, negative, anchors)
        return Outcome((term,), metrics | {"temperature": 1 / scale.detach()})

    def pairs(self, told: Mapping[str, Regions], device: Any) -> tuple[Tensor, Tensor]:
        """(N, N) bool twice: of each region (rows) its positives, and its negatives.

        Positive is one thing in two images of a row. Neither are a region itself, one of the same text, which is a
        second thing of that name or the same one, and two regions of a row without an id, of which nobody says whether
        they are one thing.
        """
        table = table_of(told, device)
        return region_pairs(table, self.negatives, self.overlap, same_class=self.same_class)

    def _with_memory(
        self,
        policy: Signals,
        told: Mapping[str, Regions],
        vectors: Tensor,
        similarities: Tensor,
        positive: Tensor,
        negative: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is compared, with the keys of earlier batches as further columns; then this batch's are kept."""
        memory = self.memory
        if memory is None:
            raise ValueError("RegionContrast: memory has no room yet: call set_widths, as the trainer does")
        own = [row for regions in told.values() for row in regions.row]
        names = [policy.row_ids[row] if policy.row_ids else "" for row in own]
        texts = [text.casefold() for regions in told.values() for text in regions.texts]
        kinds = [kind.casefold() for regions in told.values() for kind in regions.kinds]
        row, text, kind = (sent(numbers_of(each), vectors.device) for each in (names, texts, kinds))
        others = memory.filled() & ~((row[:, None] == memory.rows) & (row[:, None] != 0))
        others = others & ~((text[:, None] == memory.texts) & (text[:, None] != 0))
        if not self.same_class:
            others = others & ~((kind[:, None] == memory.kinds) & (kind[:, None] != 0))
        # Its keys are about to be overwritten, while the backward pass still reads them.
        joined = torch.cat([similarities, vectors @ memory.keys.to(vectors.dtype).clone().T], dim=1)
        if self.training:
            memory.add(vectors.detach(), row, text, kind)
        return joined, F.pad(positive, (0, others.shape[1])), torch.cat([negative, others], dim=1)


def region_pairs(table: RegionTable, negatives: str, overlap: float, *, same_class: bool) -> tuple[Tensor, Tensor]:
    """(N, N) bool twice: positives and negatives; see `RegionContrast`, whose options these are."""
    same_row, same_picture = equal(table.row), equal(table.picture)
    same_thing, same_text = equal(table.thing) & same_row, equal(table.text) & (table.text != 0)
    positive = same_thing & ~same_picture & (table.thing != 0)
    across = torch.ones_like(same_row) if negatives == "batch" else same_row
    within = torch.zeros_like(same_row) if negatives == "pair" else contained(table.boxes) <= overlap
    negative = across & ~same_thing & ~same_text & (~same_picture | within)
    if negatives == "pair":
        # Those in a picture that shows the anchor too.
        shown = (positive.to(table.boxes.dtype) @ same_picture.to(table.boxes.dtype)) > 0
        negative &= shown
    if not same_class:
        negative &= ~(equal(table.kind) & (table.kind != 0))
    return positive, negative


def found_among(similarities: Tensor, positive: Tensor, negative: Tensor, anchors: Tensor) -> dict[str, Tensor]:
    """The metrics "accuracy", "gap" and "negatives" of `RegionContrast`, of those (N,) that are `anchors`."""
    hidden = torch.finfo(similarities.dtype).min
    best = similarities.masked_fill(~positive, hidden).amax(dim=1)
    worst = similarities.masked_fill(~negative, hidden).amax(dim=1)
    means = [(similarities * mask).sum(1) / mask.sum(1).clamp(min=1) for mask in (positive, negative)]
    told = {
        "accuracy": (best > worst).float(),
        "gap": means[0] - means[1],
        "negatives": negative.sum(dim=1).float(),
    }
    return {name: value[anchors] for name, value in told.items()}
