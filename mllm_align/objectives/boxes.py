"""How far apart boxes are: L1 and generalised IoU."""

from __future__ import annotations

import torch
from torch import Tensor


def corners(boxes: Tensor) -> Tensor:
    """(N, 4) left, top, right and bottom of boxes given as centre, width and height."""
    centre, size = boxes[:, :2], boxes[:, 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=1)


def centres(boxes: Tensor) -> Tensor:
    """(N, 4) centre, width and height of boxes given as left, top, right and bottom."""
    return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)


def overlap_of(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """IoU, and generalised IoU (Rezatofighi et al., 2019), https://arxiv.org/abs/1902.09630, of boxes in pairs.

    The latter is IoU less the share of the smallest box around both that neither covers.

    Args:
        boxes: (N, 4) left, top, right and bottom, none the wrong way round.
        others: (N, 4) likewise.

    Returns:
        (N,) twice: from 0 to 1, and from -1 to 1; 0 for both where neither box has an area.
    """
    low, high = torch.maximum(boxes[:, :2], others[:, :2]), torch.minimum(boxes[:, 2:], others[:, 2:])
    common = (high - low).clamp(min=0).prod(dim=1)
    areas = [(each[:, 2:] - each[:, :2]).prod(dim=1) for each in (boxes, others)]
    union = areas[0] + areas[1] - common
    outer = torch.maximum(boxes[:, 2:], others[:, 2:]) - torch.minimum(boxes[:, :2], others[:, :2])
    around = outer.prod(dim=1)
    least = torch.finfo(boxes.dtype).tiny
    iou = common / union.clamp(min=least)
    return iou, iou - (around - union) / around.clamp(min=least)
