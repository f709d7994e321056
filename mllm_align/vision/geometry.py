"""Boxes and masks on an image to weights over its tokens, by exact area coverage.

A token's weight is the share of its cell that the region covers, 0 to 1; a region pools the tokens' mean by these
weights. However small a region is, the weights add up to its area, where of masks that are resized and cut at a half
three in four are lost at half a token's side. An image that is shown several times (tiles and a thumbnail) has weights
in each view: a view with small cells has more of them, and so more say in the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mllm_align.families.grids import Grid


def box_weights(boxes: Tensor, grids: Sequence[Grid], num_tokens: int) -> Tensor:
    """How much of each token's cell each box covers.

    Args:
        boxes: (R, 4) left, top, right and bottom in widths and heights of the upright original.
        grids: Where the image's tokens lie (`Family.token_grids`).
        num_tokens: T, of the image.

    Returns:
        (R, T) float32 from 0 to 1. What of a box lies beyond its image does not count; a box without area, the wrong
        way round, or outside everything that the model is shown has no weight at all.

    Raises:
        ValueError: If boxes are not of this shape or not finite, or the grids have more tokens than the image.
    """
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (regions, 4), not {tuple(boxes.shape)}")
    if not boxes.isfinite().all():
        raise ValueError("a box has a side that is not a finite number")
    sides = boxes.to(torch.float64).clamp(0, 1)

    def covered(grid: Grid) -> Tensor:
        left, top, right, bottom = grid.area
        across = _overlaps(sides[:, 0], sides[:, 2], left, right, grid.columns)
        down = _overlaps(sides[:, 1], sides[:, 3], top, bottom, grid.rows)
        return down[:, :, None] * across[:, None, :]

    return _on_tokens(covered, len(boxes), grids, num_tokens)


def roi_align_weights(boxes: Tensor, grids: Sequence[Grid], num_tokens: int) -> Tensor:
    """Weights of RoIAlign to one cell (He et al., 2017, https://arxiv.org/abs/1703.06870) on the grid of tokens.

    A box is sampled at evenly spread points, one per token that it is wide and high, rounded up; each is interpolated
    between the four tokens around it. So tokens beside a small box have a say, which coverage does not give them.
    Where an image is shown several times, a view counts by how many of its cells the box covers.

    Args:
        boxes: As of `box_weights`.
        grids: As of `box_weights`.
        num_tokens: As of `box_weights`.

    Returns:
        (R, T) float32; a region has weight where and only where `box_weights` gives it some.

    Raises:
        ValueError: As `box_weights`.
    """
    checked = box_weights(boxes, grids, num_tokens)  # raises for what is no box
    sides = boxes.to(torch.float64).clamp(0, 1)

    def sampled(grid: Grid) -> Tensor:
        left, top, right, bottom = grid.area
        across = _samples(sides[:, 0], sides[:, 2], left, right, grid.columns)
        down = _samples(sides[:, 1], sides[:, 3], top, bottom, grid.rows)
        return down[:, :, None] * across[:, None, :]

    found = _on_tokens(sampled, len(boxes), grids, num_tokens)
    return torch.where(checked.any(dim=1, keepdim=True), found, 0)


def mask_weights(masks: Tensor, grids: Sequence[Grid], num_tokens: int) -> Tensor:
    """How much of each token's cell each mask covers; a mask's pixels are areas, not points.

    Args:
        masks: (R, h, w) bool, or shares from 0 to 1, over the whole upright original; of any size.
        grids: As of `box_weights`.
        num_tokens: As of `box_weights`.

    Returns:
        (R, T) float32 from 0 to 1.

    Raises:
        ValueError: If masks are not of this shape, or the grids have more tokens than the image.
    """
    if masks.dim() != 3:
        raise ValueError(f"masks must be (regions, height, width), not {tuple(masks.shape)}")
    values = masks.to(torch.float64)

    def covered(grid: Grid) -> Tensor:
        left, top, right, bottom = grid.area
        across = _pixel_overlaps(masks.shape[2], left, right, grid.columns)
        down = _pixel_overlaps(masks.shape[1], top, bottom, grid.rows)
        return torch.einsum("yr,nyx,xc->nrc", down, values, across)

    return _on_tokens(covered, len(masks), grids, num_tokens)


def _on_tokens(covered: Callable[[Grid], Tensor], num_regions: int, grids: Sequence[Grid], num_tokens: int) -> Tensor:
    """The (R, rows, columns) coverage of each grid's cells, at their tokens."""
    weights = torch.zeros(num_regions, num_tokens)
    for grid in grids:
        if grid.stop > num_tokens:
            raise ValueError(
                f"a grid ends at token {grid.stop} of an image of {num_tokens}: not this image's geometry"
            )
        rows = torch.arange(grid.rows) * grid.row_step
        tokens = grid.start + rows[:, None] + torch.arange(grid.columns)
        weights[:, tokens.flatten()] += covered(grid).flatten(1).to(torch.float32)
    return weights


def _overlaps(low: Tensor, high: Tensor, start: float, stop: float, cells: int) -> Tensor:
    """(R, cells) the share of each of the equal cells from start to stop that lies between low and high (R,)."""
    edges = torch.arange(cells + 1, dtype=torch.float64)
    # In cells: where the interval begins and ends.
    low, high = ((side - start) / (stop - start) * cells for side in (low, high))
    return (torch.minimum(high[:, None], edges[1:]) - torch.maximum(low[:, None], edges[:-1])).clamp(min=0)


def _samples(low: Tensor, high: Tensor, start: float, stop: float, cells: int) -> Tensor:
    """(R, cells) weights of cells in the mean of evenly spread points between low and high (R,), times its length."""
    low, high = (((side - start) / (stop - start) * cells).clamp(0, cells) for side in (low, high))
    weights = torch.zeros(len(low), cells, dtype=torch.float64)
    for number, (begin, end) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        if end <= begin:
            continue
        count = max(1, math.ceil(end - begin))
        points = begin + (torch.arange(count, dtype=torch.float64) + 0.5) * (end - begin) / count
        # Cells are known at their centres.
        places = (points - 0.5).clamp(0, cells - 1)
        lower = places.floor().long().clamp(max=max(cells - 2, 0))
        share = places - lower
        weights[number].index_add_(0, lower, 1 - share)
        weights[number].index_add_(0, (lower + 1).clamp(max=cells - 1), share)
        weights[number] *= (end - begin) / count
    return weights


def _pixel_overlaps(pixels: int, start: float, stop: float, cells: int) -> Tensor:
    """(pixels, cells) the share of each cell that each pixel of the whole side covers."""
    edges = torch.arange(pixels + 1, dtype=torch.float64) / pixels
    return _overlaps(edges[:-1], edges[1:], start, stop, cells)
