"""IoU and its generalisation against counted points, exactly known cases, and differences."""

from __future__ import annotations

import pytest
import torch

from mllm_align.objectives.boxes import centres, corners, overlap_of

BOXES = [[0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.75, 0.5], [0.6, 0.1, 0.9, 0.8], [0.25, 0.25, 0.5, 0.5]]


def by_points(one: list[float], other: list[float]) -> tuple[float, float]:
    """Of 200 x 200 points: how many lie in both, in either, and in the smallest box around both."""
    steps = [(k + 0.5) / 200 for k in range(200)]

    def holds(box: list[float], x: float, y: float) -> bool:
        return box[0] < x < box[2] and box[1] < y < box[3]

    around = [min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3])]
    points = [(x, y) for x in steps for y in steps]
    both = sum(holds(one, *p) and holds(other, *p) for p in points)
    either = sum(holds(one, *p) or holds(other, *p) for p in points)
    outer = sum(holds(around, *p) for p in points)
    return both / either, both / either - (outer - either) / outer


def test_they_are_those_of_counted_points() -> None:
    pairs = [(one, other) for one in BOXES for other in BOXES]
    iou, giou = overlap_of(*(torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True)))
    for number, pair in enumerate(pairs):
        expected = by_points(*pair)
        assert (iou[number].item(), giou[number].item()) == pytest.approx(expected, abs=1e-9)
    assert giou.min() < 0 < iou.max() == 1


def test_boxes_without_area() -> None:
    point = torch.tensor([[0.2, 0.2, 0.2, 0.2]])
    assert [value.item() for value in overlap_of(point, point)] == [0, 0]
    iou, giou = overlap_of(point, torch.tensor([[0.4, 0.4, 0.6, 0.6]]))
    assert iou.item() == 0
    assert giou.item() == pytest.approx(-(0.16 - 0.04) / 0.16)


def test_centres_and_back() -> None:
    boxes = torch.tensor(BOXES, dtype=torch.float64)
    assert centres(boxes)[1].tolist() == [0.5, 0.375, 0.5, 0.25]
    torch.testing.assert_close(corners(centres(boxes)), boxes)


def test_gradients() -> None:
    boxes = torch.tensor(BOXES, dtype=torch.float64) + 0.01
    others = (boxes.flip(0) * 0.9 + 0.013).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda other: overlap_of(boxes, other), others)
