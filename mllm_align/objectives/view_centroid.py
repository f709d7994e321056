"""Views of one thing drawn towards their middle."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mllm_align.contract import Feature, Needs, Outcome, Signals, Term
from mllm_align.objectives.columns import image_columns
from mllm_align.objectives.options import WithOptions
from mllm_align.objectives.padding import padded
from mllm_align.objectives.preference import check_switches

# Below this the mean cosine to its neighbours would make of one view nearly the whole centroid, or a negative weight.
LEAST_COSINE = 0.05


def view_centroids(views: Tensor, there: Tensor, neighbours: int) -> Tensor:
    """The middle of each thing's views, in which those that lie apart weigh more.

    Args:
        views: (G, n, d) unit vectors, padded with zeros.
        there: (G, n) bool, which are no padding; two of each thing at the least.
        neighbours: A view's weight is one over its mean cosine to so many nearest others, or to all where there are
            fewer; of a mean below 0.05, one over that.

    Returns:
        (G, d) unit vectors, without a gradient.
    """
    views = views.detach()
    itself = torch.eye(views.shape[1], dtype=torch.bool, device=views.device)
    usable = there[:, None, :] & there[:, :, None] & ~itself
    cosines = (views @ views.transpose(1, 2)).masked_fill(~usable, -torch.inf)
    nearest = cosines.topk(min(neighbours, views.shape[1] - 1), dim=2).values
    taken = nearest.isfinite()
    mean = nearest.masked_fill(~taken, 0).sum(dim=2) / taken.sum(dim=2).clamp(min=1)
    weight = there / mean.clamp(min=LEAST_COSINE)
    return F.normalize((weight[:, :, None] * views).sum(dim=1), dim=1)


class ViewCentroid(WithOptions):
    """View consistency of Omniview-Tuning, on regions (Ruan et al., 2024), https://arxiv.org/abs/2404.12139

    Draws the views of a thing that lie farthest from the middle of all its views towards it, so that one thing looks
    the same from everywhere. Nothing is pushed apart: use it beside a contrast, or everything becomes the same.

    Args:
        columns: Image columns whose regions take part: "image" and "contrast_image".
        outliers: How many views of each thing are drawn, those least similar to the middle; all where there are fewer.
        neighbours: Of a view, whose similarity decides how much it weighs in the middle.
        across_rows: Whether an `object_id` means one thing in all rows; else it does within its row.

    Needs:
        One feature a column, regions of image tokens; no views, no reference. Rows need `objects` with ids.

    Shapes:
        Features (N, d), computed in float32 at least. Term "view_centroid": sum over the views that are drawn of one
        less the cosine to the middle, count their number. Metrics: the cosine of those, "outliers" (N,), and of every
        view of a thing with two or more, "consistency" (M,).

    Example:
        >>> from mllm_align.contract import Ragged, Regions
        >>> boxes = ((0.0, 0.0, 1.0, 1.0),) * 3
        >>> told = Regions((0, 0, 0), (0, 1, 2), boxes, ("mug",) * 3, ("",) * 3, ("",) * 3)
        >>> values = Ragged(torch.ones(3, 2), torch.zeros(3, dtype=torch.long))
        >>> signals = Signals({}, {}, features={"regions:image": values}, sources=("x",), regions={"image": told})
        >>> round(ViewCentroid()(signals, None).loss.item(), 4)
        0.0

    Relations:
        RegionContrast draws views of one thing together in pairs, and pushes others away. With frozen tower and
        projector no gradient arrives: train the projector or put LoRA on the tower.

    Deviations:
        The middle is of the views in the batch; the authors look at all views of a thing once an epoch. Their hinge
        has a margin of .3 that never clips, and so is this loss plus .3. A mean cosine below 0.05 counts as that. They
        tune a CLIP on whole images beside its own loss.
    """

    # Where a batch without any region has its loss.
    zero: Tensor

    def __init__(
        self,
        columns: Sequence[str] = ("image",),
        outliers: int = 5,
        neighbours: int = 5,
        across_rows: bool = False,
    ) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        check_switches("ViewCentroid", across_rows=across_rows)
        named = image_columns("ViewCentroid", columns)
        self.columns, self.outliers, self.neighbours, self.across_rows = named, outliers, neighbours, across_rows
        self.register_buffer("zero", torch.zeros(()), persistent=False)
        for name, value in (("outliers", outliers), ("neighbours", neighbours)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"ViewCentroid: {name} must be a whole number above 0, got {value!r}")

    @property
    def needs(self) -> Needs:
        """Regions of each column."""
        return Needs(features=tuple(Feature(f"regions:{c}", "projector", c, pooling="regions") for c in self.columns))

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The term and metrics of one batch."""
        there = [name for name in self.columns if f"regions:{name}" in policy.features]
        groups = self._groups(policy, there)
        if not groups:
            zero = sum((policy.features[f"regions:{name}"].values[:0].sum() for name in there), self.zero)
            return Outcome((Term("view_centroid", 1.0, zero, self.zero),))
        values = torch.cat([policy.features[f"regions:{name}"].values for name in there])
        unit = F.normalize(values.to(torch.promote_types(values.dtype, torch.float32)), dim=1)
        views, is_view = padded(unit, groups)
        with torch.autocast(unit.device.type, enabled=False):
            middle = view_centroids(views, is_view, self.neighbours)
            cosines = (views * middle[:, None]).sum(dim=2)
        # Padding is as similar as nothing is, and so drawn last.
        order = cosines.detach().masked_fill(~is_view, torch.inf).argsort(dim=1)[:, : self.outliers]
        drawn, is_drawn = cosines.gather(1, order), is_view.gather(1, order)
        count = sum(min(len(own), self.outliers) for own in groups)
        losses = (1 - drawn).masked_fill(~is_drawn, 0)
        term = Term("view_centroid", 1.0, losses.sum(), torch.tensor(float(count)))
        told = {"outliers": drawn.detach()[is_drawn], "consistency": cosines.detach()[is_view]}
        return Outcome((term,), told)

    def _groups(self, policy: Signals, there: Sequence[str]) -> list[list[int]]:
        """The views of each thing that has two or more."""
        groups: dict[Hashable, list[int]] = {}
        place = 0
        for name in there:
            regions = policy.regions[name]
            for row, thing in zip(regions.row, regions.object_ids, strict=True):
                if thing:
                    groups.setdefault(thing if self.across_rows else (row, thing), []).append(place)
                place += 1
        return [own for own in groups.values() if len(own) > 1]
