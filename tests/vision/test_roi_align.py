"""RoIAlign weights against points that are interpolated one by one on a map of values."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from mllm_align.families.grids import grid
from mllm_align.objectives import RegionContrast
from mllm_align.vision import box_weights
from mllm_align.vision.geometry import roi_align_weights
from runs import make_trainer
from two_pictures import rows_of_two_pictures

BOXES = ((0.1, 0.2, 0.6, 0.9), (0.31, 0.4, 0.33, 0.41), (0.0, 0.0, 1.0, 1.0), (0.9, 0.0, 1.4, 0.3))


def interpolated(values: list[list[float]], x: float, y: float) -> float:
    """Of a point in cells, between the centres of the four cells around it."""
    rows, columns = len(values), len(values[0])
    x, y = min(max(x - 0.5, 0), columns - 1), min(max(y - 0.5, 0), rows - 1)
    left, top = int(x), int(y)
    right, bottom = min(left + 1, columns - 1), min(top + 1, rows - 1)
    a, b = x - left, y - top
    upper = (1 - a) * values[top][left] + a * values[top][right]
    lower = (1 - a) * values[bottom][left] + a * values[bottom][right]
    return (1 - b) * upper + b * lower


@pytest.mark.parametrize("box", BOXES)
def test_a_mean_by_the_weights_is_that_of_the_points(box: tuple[float, ...]) -> None:
    rows, columns = 5, 7
    values = torch.randn(rows, columns, dtype=torch.float64)
    weights = roi_align_weights(torch.tensor([box]), [grid(rows, columns)], rows * columns)[0].double()
    left, top, right, bottom = (min(max(side, 0), 1) * size for side, size in zip(box, (7, 5, 7, 5), strict=True))
    across, down = max(1, math.ceil(right - left)), max(1, math.ceil(bottom - top))
    points = [
        interpolated(
            values.tolist(), left + (n + 0.5) * (right - left) / across, top + (m + 0.5) * (bottom - top) / down
        )
        for n in range(across)
        for m in range(down)
    ]
    mean = float((weights * values.flatten()).sum() / weights.sum())
    assert mean == pytest.approx(sum(points) / len(points), rel=1e-5)
    assert weights.sum().item() == pytest.approx((right - left) * (bottom - top), rel=1e-5)


def test_where_coverage_gives_none_there_is_none() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.9], [0.9, 0.1, 0.2, 0.3], [1.2, 0.1, 1.5, 0.3], [0.2, 0.2, 0.3, 0.3]])
    layout = [grid(3, 4), grid(2, 2, (0.25, 0.0, 0.75, 1.0), 12)]
    expected = box_weights(boxes, layout, 16).any(dim=1).tolist()
    assert roi_align_weights(boxes, layout, 16).any(dim=1).tolist() == expected == [False, False, False, True]
    with pytest.raises(ValueError, match="boxes must be"):
        roi_align_weights(torch.zeros(3), layout, 16)


def test_a_run_pools_as_it_is_set(tmp_path: Path) -> None:
    rows = rows_of_two_pictures()
    weights = [
        make_trainer(tmp_path, RegionContrast(), rows, adapter=None, region_pooling=way).data_collator(rows)["batch"]
        for way in ("coverage", "roi_align")
    ]
    first, second = (torch.cat(batch.region_weights["image"]) for batch in weights)
    assert (second > 0).sum() > (first > 0).sum()
    with pytest.raises(ValueError, match="region_pooling 'roi' is none of coverage, roi_align"):
        make_trainer(tmp_path, RegionContrast(), rows, adapter=None, region_pooling="roi")
