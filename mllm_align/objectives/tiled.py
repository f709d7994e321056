"""InfoNCE without a matrix of all pairs: a tile of it at a time, in the forward pass and once more in the backward."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mllm_align.objectives.contrast_rules import SIDES
from mllm_align.objectives.identity import Ids
from mllm_align.objectives.nearest import Nearest, tolerance


def tiled_info_nce(
    images: Tensor,
    texts: Tensor,
    present: Tensor,
    scale: Tensor,
    tile: int,
    *,
    negatives: tuple[Tensor, Tensor] | None = None,
    positive_weight: float = 1.0,
    sides: str = "both",
    ids: Ids | None = None,
) -> tuple[Tensor, Nearest]:
    """InfoNCE in memory that grows with the rows, not with their square: exact, and so are its gradients.

    As Inf-CL (Cheng et al., 2024), https://arxiv.org/abs/2410.17243, it keeps the logarithm of each denominator and
    computes similarities again for the gradient; here both directions are read off the same tile, on any device.

    Args:
        images: (B, d) unit vectors.
        texts: (B, d) unit vectors; row b belongs to image b.
        present: (B,) bool, the rows that take part.
        scale: 0-d, one over the temperature.
        tile: Rows and columns of a tile.
        negatives: (M, d) unit vectors of further texts, which every image is told from, and (M,) bool, which count.
        positive_weight: Of the positive in its own denominator (`Rule`); 0 is the decoupled loss.
        sides: "both", of which the loss is the mean, "image_to_text" or "text_to_image".
        ids: What was read twice: such pairs are left out, neither positives nor negatives. None for nothing.

    Returns:
        (B,) losses, 0 where not present or without a negative; and how near partners are, without a gradient.
    """
    if negatives is None:
        negatives = texts[:0].detach(), present[:0]
    log_weight = math.log(positive_weight) if positive_weight else -math.inf
    counts = negatives[1]
    losses, *near = _Tiled.apply(
        images, texts, negatives[0], scale, present, counts, ids, log_weight, SIDES[sides], tile
    )
    return losses, Nearest(*near)


def tiled_nearest(images: Tensor, texts: Tensor, present: Tensor, tile: int, ids: Ids | None = None) -> Nearest:
    """How near partners are, as `nearest` finds it, from a tile of cosines at a time; without a gradient.

    Args:
        images: (B, d) unit vectors.
        texts: (B, d) unit vectors; row b belongs to image b.
        present: (B,) bool, the rows that take part.
        tile: Rows and columns of a tile.
        ids: What was read twice, and so is no other; None for nothing.
    """
    with torch.no_grad():
        one = torch.ones((), device=images.device)
        tiles = _Tiles(images, texts, texts[:0], one, present, present[:0], ids, 0.0, tile)
        near = tiles.partners()
        for part, other, cosines in tiles.of_pairs():
            tiles.compare(near, cosines, part, other, tiles.absent(part, other))
    return near


class _Sums(NamedTuple):
    """(B,) logarithms of the denominators of images and of texts, and whether each has a negative."""

    row: Tensor
    column: Tensor
    has_text: Tensor
    has_image: Tensor


class _Tiled(torch.autograd.Function):
    """Vectors, logarithms of denominators, and which rows have a negative, are all that is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        texts: Tensor,
        negatives: Tensor,
        scale: Tensor,
        present: Tensor,
        counts: Tensor,
        ids: Ids | None,
        log_weight: float,
        shares: tuple[float, float],
        tile: int,
    ) -> tuple[Tensor, ...]:
        """The losses; own cosines, those of the nearest other text and image, and ties."""
        with torch.autocast(images.device.type, enabled=False):
            tiles = _Tiles(images, texts, negatives, scale, present, counts, ids, log_weight, tile)
            sums, near = tiles.denominators()
        ctx.save_for_backward(images, texts, negatives, scale, present, counts, *sums)
        ctx.options = ids, log_weight, shares, tile
        right = tiles.scale * near.own
        losses = shares[0] * torch.where(sums.has_text, sums.row - right, 0.0)
        losses = losses + shares[1] * torch.where(sums.has_image, sums.column - right, 0.0)
        ctx.mark_non_differentiable(*near)
        return losses, *near

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """Gradients of vectors and scale."""
        images, texts, negatives, scale, present, counts, row, column, has_text, has_image = ctx.saved_tensors
        ids, log_weight, shares, tile = ctx.options
        with torch.autocast(gradient.device.type, enabled=False):
            tiles = _Tiles(images, texts, negatives, scale, present, counts, ids, log_weight, tile)
            to_text = shares[0] * torch.where(has_text, gradient, 0.0)
            to_image = shares[1] * torch.where(has_image, gradient, 0.0)
            # Where nothing was summed nothing is taken off, or it would be no number.
            row, column = (each.masked_fill(each.isneginf(), 0.0) for each in (row, column))
            found = tiles.gradients(row, column, to_text, to_image)
        given = images, texts, negatives, scale
        wanted = zip(found, given, ctx.needs_input_grad[:4], strict=True)
        return *(each.to(like.dtype) if need else None for each, like, need in wanted), *([None] * 6)


class _Tiles:
    """Tiles of similarities of images (rows) to texts, and to further texts."""

    def __init__(
        self,
        images: Tensor,
        texts: Tensor,
        negatives: Tensor,
        scale: Tensor,
        present: Tensor,
        counts: Tensor,
        ids: Ids | None,
        log_weight: float,
        tile: int,
    ) -> None:
        self.images, self.texts, self.negatives, self.present, self.counts = images, texts, negatives, present, counts
        self.ids = ids
        self.dtype = torch.promote_types(images.dtype, torch.float32)
        self.scale, self.log_weight, self.tile = scale.to(self.dtype), log_weight, tile

    def rows(self) -> Iterator[slice]:
        return self._slices(len(self.images))

    def further(self) -> Iterator[slice]:
        return self._slices(len(self.negatives))

    def _slices(self, length: int) -> Iterator[slice]:
        return (slice(start, min(start + self.tile, length)) for start in range(0, length, self.tile))

    def of_pairs(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows, columns and cosines of every tile of images and texts."""
        for part in self.rows():
            images = self._read(self.images, part)
            for other in self.rows():
                yield part, other, images @ self._read(self.texts, other).T

    def partners(self) -> Nearest:
        """How near partners are, as yet without others."""
        own = torch.empty(len(self.images), dtype=self.dtype, device=self.images.device)
        for part in self.rows():
            # Read off a tile as others are, so that what is equal is rounded alike.
            own[part] = (self._read(self.images, part) @ self._read(self.texts, part).T).diagonal()
        none = torch.full_like(own, -torch.inf)
        return Nearest(own, none, none.clone(), torch.zeros_like(own))

    def _read(self, vectors: Tensor, part: slice) -> Tensor:
        return vectors[part].to(self.dtype)

    def _weighed(self, cosines: Tensor, on_diagonal: bool) -> Tensor:
        """Logarithms of what is summed in denominators."""
        found = self.scale * cosines
        if on_diagonal and self.log_weight:
            found.diagonal().add_(self.log_weight)
        return found

    def absent(self, part: slice, other: slice) -> tuple[Tensor, Tensor]:
        """Which pairs of a tile do not count for its images, and for its texts; may be of one line alone."""
        texts, images = ~self.present[None, other], ~self.present[part, None]
        if self.ids is None:
            return texts, images
        alike = self.ids.alike(part, other)
        return texts | alike, images | alike

    def _not_false(self, part: slice, other: slice) -> Tensor:
        """Which pairs of images and further texts do not count."""
        absent = ~self.counts[None, other]
        return absent if self.ids is None else absent | self.ids.true_of(part, other)

    def denominators(self) -> tuple[_Sums, Nearest]:
        """What is summed, and how near partners are."""
        near = self.partners()
        row, column = (torch.full_like(near.own, -torch.inf) for _ in range(2))
        of_text, of_image = (torch.zeros_like(self.present, dtype=torch.long) for _ in range(2))
        for part, other, cosines in self.of_pairs():
            weighed = self._weighed(cosines, part == other)
            absent = self.absent(part, other)
            _add(row, part, weighed.masked_fill(absent[0], -torch.inf), 1)
            _add(column, other, weighed.masked_fill(absent[1], -torch.inf), 0)
            of_text[part] += (~absent[0]).sum(dim=1)
            of_image[other] += (~absent[1]).sum(dim=0)
            self.compare(near, cosines, part, other, absent)
        for part in self.rows():
            images = self._read(self.images, part)
            for other in self.further():
                cosines = images @ self._read(self.negatives, other).T
                absent = self._not_false(part, other)
                _add(row, part, self._weighed(cosines, False).masked_fill(absent, -torch.inf), 1)
                of_text[part] += (~absent).sum(dim=1)
        # One of those that count is the partner.
        return _Sums(row, column, self.present & (of_text > 1), self.present & (of_image > 1)), near

    def compare(
        self, near: Nearest, cosines: Tensor, part: slice, other: slice, absent: tuple[Tensor, Tensor]
    ) -> None:
        """Takes note of what is nearest in a tile."""
        if part == other:
            cosines.fill_diagonal_(-torch.inf)
        margin = tolerance(self.dtype)
        columns = cosines.masked_fill(absent[0], -torch.inf)
        near.text[part] = near.text[part].maximum(columns.amax(dim=1))
        near.ties[part] += ((columns - near.own[part, None]).abs() <= margin).sum(dim=1)
        rows = cosines.masked_fill(absent[1], -torch.inf)
        near.image[other] = near.image[other].maximum(rows.amax(dim=0))
        near.ties[other] += ((rows - near.own[other]).abs() <= margin).sum(dim=0)

    def gradients(self, row: Tensor, column: Tensor, to_text: Tensor, to_image: Tensor) -> tuple[Tensor, ...]:
        """Gradients of images, texts, further texts and scale.

        `row` and `column` are the logarithms of the denominators, `to_text` and `to_image` (B,) what arrives at the
        loss of each image and of each text.
        """
        images, texts, negatives = (
            torch.zeros(each.shape, dtype=self.dtype, device=each.device)
            for each in (self.images, self.texts, self.negatives)
        )
        scale = torch.zeros_like(self.scale)
        for part in self.rows():
            own = self._read(self.images, part)
            for other in self.rows():
                keys = self._read(self.texts, other)
                cosines = own @ keys.T
                weighed = self._weighed(cosines, part == other)
                absent = self.absent(part, other)
                share = (weighed - row[part, None]).exp_().masked_fill_(absent[0], 0).mul_(to_text[part, None])
                share += (weighed - column[other]).exp_().masked_fill_(absent[1], 0).mul_(to_image[other])
                if part == other:
                    share.diagonal().sub_(to_text[part] + to_image[part])
                scale += (share * cosines).sum()
                images[part] += self.scale * share @ keys
                texts[other] += self.scale * share.T @ own
            for other in self.further():
                keys = self._read(self.negatives, other)
                cosines = own @ keys.T
                share = (self._weighed(cosines, False) - row[part, None]).exp_()
                share.masked_fill_(self._not_false(part, other), 0).mul_(to_text[part, None])
                scale += (share * cosines).sum()
                images[part] += self.scale * share @ keys
                negatives[other] += self.scale * share.T @ own
        return images, texts, negatives, scale


def _add(total: Tensor, place: slice, values: Tensor, dim: int) -> None:
    total[place] = torch.logaddexp(total[place], values.logsumexp(dim=dim))
