"""All three ways compute one loss; memory that grows with a power of the size is told by that power."""

from __future__ import annotations

import json

import pytest
import torch

import table
from shapes import PRESETS
from tiled_contrast import ARMS, TEMPERATURE, exponent


def test_all_ways_have_one_loss_and_one_gradient() -> None:
    found = {}
    for name, build in ARMS.items():
        side = build(PRESETS["tiny"])
        data = side.prepare(600)
        found[name] = side.step(data), data, side.model["scale"].grad
    loss, data, scale = found["dense"]
    for name, (other, others, other_scale) in found.items():
        assert other == pytest.approx(loss, rel=1e-5)
        for one, expected in zip(others, data, strict=True):
            torch.testing.assert_close(one.grad, expected.grad, rtol=1e-4, atol=1e-8)
        if name == "rows":
            assert other_scale is None
        else:
            torch.testing.assert_close(other_scale, scale, rtol=1e-4, atol=1e-8)
    # In plain loops: the mean of both directions.
    cosines = (data.images @ data.texts.T).double() / TEMPERATURE
    expected = sum(cosines[i].logsumexp(0) + cosines[:, i].logsumexp(0) - 2 * cosines[i, i] for i in range(600)) / 1200
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_the_power_of_growth() -> None:
    assert exponent({2: 12.0, 4: 48.0, 8: 192.0}) == pytest.approx(2)
    assert exponent({1024: 10.0, 2048: 20.0}) == pytest.approx(1)


def test_the_results_beside_the_benchmark_clear_the_bars() -> None:
    result = json.loads((table.FOLDER / "tiled_contrast.json").read_text())
    assert result["preset"] == "small"
    assert [point["rows"] for point in result["points"]] == [1024, 2048, 4096, 8192]
    assert result["exponent"]["tiled"] <= 1.1
    assert result["exponent"]["dense"] >= 1.5
    largest = result["points"][-1]
    assert largest["memory_ratio"] == pytest.approx(largest["peak_mb"]["tiled"] / largest["peak_mb"]["dense"])
    assert largest["memory_ratio"] <= 0.15
