"""Contrast between regions and what they are called."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm_align.contract import Feature, Needs, Outcome, Signals, Term
from mllm_align.objectives.columns import image_columns
from mllm_align.objectives.contrast_kernels import continuous_weights, sigmoid_contrast, softmax_contrast, takes_part
from mllm_align.objectives.host import sent
from mllm_align.objectives.options import WithOptions
from mllm_align.objectives.preference import check_positive, check_switches
from mllm_align.objectives.projection import Projection
from mllm_align.objectives.region_masks import RegionTable, check_similarity, similar, table_of
from mllm_align.objectives.temperature import bounded_scale, check_temperature, log_scale_of

LOSSES = ("softmax", "sigmoid")
SIDES = ("both", "region_to_text", "text_to_region")


@dataclass(frozen=True)
class Compared:
    """The N regions of a batch that have a text, beside these.

    Attributes:
        places: Which of all regions they are, one column after the other, on the host.
        regions: (N, d) unit vectors.
        texts: (N, e) features of their texts, as measured.
        keys: (N, d) unit vectors of these.
        cosines: (N, N), rows are regions.
        table: What is known of them.
        alike: (N, N) bool, as `RegionTable.alike`.
        similar: (N, N) bool, whose texts have keys that are near to each other (`text_similarity`).
    """

    places: list[int]
    regions: Tensor
    texts: Tensor
    keys: Tensor
    cosines: Tensor
    table: RegionTable
    alike: Tensor
    similar: Tensor

    @property
    def negative(self) -> Tensor:
        """(N, N) bool: which region (rows) is told from the text of which."""
        return ~(self.alike | self.similar)


class RegionText(WithOptions):
    """Region-text contrast, as in CLOC (Chen et al., 2024), https://arxiv.org/abs/2410.02746

    And in CLIM (Wu et al., 2024), https://arxiv.org/abs/2312.11376; here on the LVLM's own image tokens.

    Pulls a region, the mean of the tokens that it covers, towards the last state of its text, read without the image,
    and away from the texts of the batch's other regions.

    Args:
        columns: Image columns whose regions take part: "image" and "contrast_image".
        loss: "softmax" (InfoNCE) or "sigmoid", a yes or no for each region and each distinct text of the batch
            (Detic's loss with caption texts, as in CLIM).
        sides: Of the softmax: "both", averaged, or one of "region_to_text" (a region chooses among texts) and
            "text_to_region".
        temperature: At the start, 1/100 at the least; cosines are divided by it.
        learn_temperature: Whether it is trained (as its logarithm, kept from going below 1/100).
        overlap: Regions in one image of which one lies within the other by more than this share of its area are not
            told apart: a hat and who wears it. 1 tells all apart.
        same_class: Whether regions of one class are told apart, as for `RegionContrast`.
        text_similarity: Regions whose texts nearly agree are not told apart: those of a cosine above this, between
            texts as they are compared with regions. States of a language model point to one side, so it must be near
            1; "negatives" in the log tells what it leaves. None for equal texts alone.
        decoupled: DCL: the positive is left out of the softmax's denominator.
        continuous: CWCL: a region is pulled towards every text, the more the more alike that text is to its own
            (`continuous_weights` of the texts' features). The other way round stays InfoNCE.
        bias: Of the sigmoid at the start; learnt.
        negative_weight: Of each negative of the sigmoid; the positives of a region count for 1 together.
        dim: Width of linear heads, one for regions and one for texts; None for no heads.

    Needs:
        Two features a column, regions of image tokens and their texts; no views, no reference. Rows need `objects`
        (and `contrast_objects`) with texts; a region without one takes no part.

    Shapes:
        Features (N, d), computed in float32 at least; `Signals.regions` tells of each. Term "region_text": sum over
        the regions that have a text and a negative, count their number. Metrics over these: whether its own text is
        nearer than every negative, "accuracy" (N,), how far it is above the mean negative in cosine, "gap" (N,),
        "negatives" (N,) their number; "temperature". One that `text_similarity` leaves no negative counts, its loss
        0, and is in "negatives" alone.

    Example:
        >>> from mllm_align.contract import Ragged, Regions
        >>> objective = RegionText(dim=None)
        >>> boxes = ((0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0))
        >>> told = Regions((0, 0), (0, 0), boxes, ("", ""), ("a cup", "a dog"), ("", ""))
        >>> values = Ragged(torch.eye(2), torch.zeros(2, dtype=torch.long))
        >>> features = {feature.name: values for feature in objective.needs.features}
        >>> signals = Signals({}, {}, features=features, sources=("x",), regions={"image": told})
        >>> round(objective(signals, None).loss.item(), 4) < 1e-4
        True

    Relations:
        RegionContrast contrasts regions with regions, ClocLike adds that a phrase finds its box. With frozen tower and
        projector the text side and the heads learn and the image tokens do not: train the projector or put LoRA on
        the tower. CLIM is this objective on mosaics of captioned images (`mllm_align.data.mosaic`).

    Deviations:
        The named methods train a CLIP; their texts go through its text encoder. Defaults are ours where papers leave
        them open.
    """

    def __init__(
        self,
        columns: Sequence[str] = ("image",),
        loss: str = "softmax",
        sides: str = "both",
        temperature: float = 0.07,
        learn_temperature: bool = True,
        overlap: float = 0.5,
        same_class: bool = True,
        text_similarity: float | None = None,
        decoupled: bool = False,
        continuous: bool = False,
        bias: float = -10.0,
        negative_weight: float = 0.125,
        dim: int | None = 256,
    ) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        name = type(self).__name__
        check_positive(name, temperature=temperature, overlap=overlap, negative_weight=negative_weight)
        switches = {"learn_temperature": learn_temperature, "same_class": same_class}
        check_switches(name, **switches, decoupled=decoupled, continuous=continuous)
        check_temperature(name, temperature)
        check_similarity(name, text_similarity)
        for option, value, known in (("loss", loss, LOSSES), ("sides", sides, SIDES)):
            if value not in known:
                raise ValueError(f"{name}: {option} must be one of {', '.join(known)}, got {value!r}")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not math.isfinite(bias):
            raise ValueError(f"{name}: bias must be a number, got {bias!r}")
        if loss == "sigmoid" and (decoupled or continuous or sides != "both"):
            raise ValueError(f"{name}: the sigmoid has neither sides nor a denominator: leave them to loss='softmax'")
        if continuous and (decoupled or sides == "text_to_region"):
            raise ValueError(
                f"{name}: continuous weights are of texts that a region chooses among, each a negative too"
            )
        if continuous and text_similarity is not None:
            raise ValueError(f"{name}: continuous pulls towards what text_similarity leaves out: give one of both")
        named = image_columns(name, columns)
        self.columns, self.kind, self.sides = named, loss, sides
        self.overlap, self.same_class, self.negative_weight = overlap, same_class, negative_weight
        self.decoupled, self.continuous, self.text_similarity = decoupled, continuous, text_similarity
        self.log_scale = log_scale_of(temperature, learn_temperature)
        self.bias = nn.Parameter(torch.tensor(float(bias))) if loss == "sigmoid" else None
        ends = {"regions": [f"regions:{own}" for own in named], "texts": [f"region_texts:{own}" for own in named]}
        self.projection = Projection(name, ends, dim)

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Makes the heads.

        Args:
            widths: Of each feature, by name.
        """
        self.projection.set_widths(widths)

    @property
    def needs(self) -> Needs:
        """Regions of each column and their texts."""
        regions = (Feature(f"regions:{name}", "projector", name, pooling="regions") for name in self.columns)
        texts = (Feature(f"region_texts:{name}", "text", name, pooling="regions") for name in self.columns)
        return Needs(features=(*regions, *texts))

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The term and metrics of one batch."""
        scale = bounded_scale(self.log_scale)
        found = self.compared(policy)
        if found is None:
            zero = 0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()
            return Outcome((Term("region_text", 1.0, zero, 0 * scale.detach()),))
        losses, anchors = self.losses(found)
        metrics = _metrics(found.cosines.detach(), found.negative, anchors) | {"temperature": 1 / scale.detach()}
        return Outcome((Term("region_text", 1.0, losses.sum(), anchors.sum()),), metrics)

    def compared(self, policy: Signals) -> Compared | None:
        """The regions of a batch that have a text, beside these; None where there are none."""
        names = [name for name in self.columns if f"regions:{name}" in policy.features]
        told = {name: policy.regions[name] for name in names}
        places = [place for place, text in enumerate(t for own in told.values() for t in own.texts) if text]
        if not places:
            return None
        values, texts = (self._joined(policy, kind, names) for kind in ("regions", "region_texts"))
        index = sent(torch.tensor(places, dtype=torch.long), values.device)
        values, texts, table = values[index], texts[index], table_of(told, values.device).pick(index)
        with torch.autocast(values.device.type, enabled=False):
            regions, keys = self.unit("regions", values), self.unit("texts", texts)
            cosines = regions @ keys.T
            close = similar(keys, keys, self.text_similarity)
        alike = table.alike(self.overlap, same_class=self.same_class)
        return Compared(places, regions, texts, keys, cosines, table, alike, close)

    def losses(self, found: Compared, extra: tuple[Tensor, Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The loss of each region, and which of them count.

        Args:
            found: What is compared.
            extra: (N, K) cosines of the regions to further texts, (N, K) bool where these are negatives, and (N, K)
                bool where they are so similar to a region's own text that they are left out; they stand beside the
                texts that a region chooses among. Of the softmax.

        Returns:
            (N,) and (N,) bool: those that have a negative, similar ones counted.
        """
        own = torch.eye(len(found.places), dtype=torch.bool, device=found.cosines.device)
        cosines, negative, close = found.cosines, ~found.alike, found.similar
        if extra is not None:
            pairs = zip((cosines, negative, close), extra, strict=True)
            cosines, negative, close = (torch.cat(pair, dim=1) for pair in pairs)
        anchors = takes_part(F.pad(own, (0, negative.shape[1] - own.shape[1])), negative)
        negative = negative & ~close
        scale = self.log_scale.exp().to(cosines.dtype)
        with torch.autocast(cosines.device.type, enabled=False):
            make = self._softmax if self.kind == "softmax" else self._sigmoid
            return torch.where(anchors, make(found, scale, cosines, negative), 0.0), anchors

    def unit(self, side: str, values: Tensor) -> Tensor:
        """(..., d) unit vectors of regions or texts in the common space, float32 at least."""
        found = self.projection(side, values)
        return F.normalize(found.to(torch.promote_types(found.dtype, torch.float32)), dim=-1)

    @staticmethod
    def _joined(policy: Signals, kind: str, names: Sequence[str]) -> Tensor:
        values = torch.cat([policy.features[f"{kind}:{name}"].values for name in names])
        return values.to(torch.promote_types(values.dtype, torch.float32))

    def _softmax(self, found: Compared, scale: Tensor, cosines: Tensor, negative: Tensor) -> Tensor:
        own = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
        further = (0, cosines.shape[1] - len(cosines))
        if self.continuous:
            # Of a region that may be the same thing nobody knows how much its text is true of this one.
            known = negative | F.pad(found.table.text[:, None] == found.table.text[None, :], further)
            weight = F.pad(continuous_weights(found.texts), further) * known
            towards = softmax_contrast(scale * cosines, weight, known)
        else:
            weight = F.pad(own, further)
            towards = softmax_contrast(scale * cosines, weight, negative, decoupled=self.decoupled)
        if self.sides == "region_to_text":
            return towards
        back = softmax_contrast(scale * found.cosines.T, own, found.negative, decoupled=self.decoupled)
        return back if self.sides == "text_to_region" else (towards + back) / 2

    def _sigmoid(self, found: Compared, scale: Tensor, cosines: Tensor, negative: Tensor) -> Tensor:
        """Columns are the distinct texts: of equal ones the first, of which none may be alike to the region."""
        assert self.bias is not None
        same_text = found.table.text[:, None] == found.table.text[None, :]
        first = same_text.tril(diagonal=-1).any(dim=1).logical_not()
        # Of a region and a text: whether some region of that text is alike to it.
        close = ((found.alike | found.similar).to(cosines.dtype) @ same_text.to(cosines.dtype)) > 0
        logits = scale * cosines + self.bias.to(cosines.dtype)
        return sigmoid_contrast(logits, same_text & first, ~close & first, self.negative_weight)


def _metrics(cosines: Tensor, negative: Tensor, anchors: Tensor) -> dict[str, Tensor]:
    own = cosines.diagonal()
    worst = cosines.masked_fill(~negative, -torch.inf).amax(dim=1)
    mean = (cosines * negative).sum(dim=1) / negative.sum(dim=1).clamp(min=1)
    compared = anchors & negative.any(dim=1)
    return {
        "accuracy": (own > worst).float()[compared],
        "gap": (own - mean)[compared],
        "negatives": negative.sum(dim=1).float()[anchors],
    }
