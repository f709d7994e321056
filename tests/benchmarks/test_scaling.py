"""Sharing prompts changes what a step costs along an axis, never what it computes."""

from __future__ import annotations

from flops import count_flops
from scaling import AXES, Size, row_by_row, shared, sizes
from shapes import PRESETS


def test_both_compute_the_same_and_sharing_pays_with_views() -> None:
    shape = PRESETS["tiny"]
    one, other = shared(shape), row_by_row(shape)
    ratios = {}
    for size in dict.fromkeys(size for _, size in sizes(AXES["tiny"])):
        losses = [side.step(side.prepare(size)) for side in (one, other)]
        assert abs(losses[0] - losses[1]) < 1e-5
        flops = [count_flops(lambda side=side, size=size: side.step(side.prepare(size))) for side in (one, other)]
        ratios[size] = flops[1] / flops[0]
    by_views = [ratios[size] for axis, size in sizes(AXES["tiny"]) if axis == "views"]
    assert by_views[0] < 1.1 < by_views[1] < by_views[2]


def test_one_size_grows_at_a_time() -> None:
    points = list(sizes({"prompt": (8, 16), "response": (6,), "images": (1, 0), "views": (2,)}))
    assert points == [
        ("prompt", Size(8, 6, 1, 2)),
        ("prompt", Size(16, 6, 1, 2)),
        ("response", Size(8, 6, 1, 2)),
        ("images", Size(8, 6, 0, 2)),
        ("images", Size(8, 6, 1, 2)),
        ("views", Size(8, 6, 1, 2)),
    ]
