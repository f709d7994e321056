"""Linear CKA against its definition in loops, and what it must be where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mllm_align.vision.cka import LinearCKA


def hsic(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate as Song et al. (2012) write it, equation 5, entry by entry.

    1 / (n (n - 3)) [tr(KL) + 1'K1 1'L1 / ((n - 1) (n - 2)) - 2 / (n - 2) 1'KL1], K and L without their diagonals.
    """
    n = len(x)
    k = [[float(x[i] @ x[j]) if i != j else 0.0 for j in range(n)] for i in range(n)]
    m = [[float(y[i] @ y[j]) if i != j else 0.0 for j in range(n)] for i in range(n)]
    trace = sum(k[i][j] * m[j][i] for i in range(n) for j in range(n))
    totals = sum(map(sum, k)) * sum(map(sum, m))
    across = sum(k[i][j] * m[j][h] for i in range(n) for j in range(n) for h in range(n))
    return (trace + totals / ((n - 1) * (n - 2)) - 2 / (n - 2) * across) / (n * (n - 3))


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_what_its_definition_says() -> None:
    cka = LinearCKA()
    sums = {"xy": 0.0, "xx": 0.0, "yy": 0.0}
    for seed, n in enumerate((5, 8)):
        x = drawn(n, 3, seed=seed) + 2
        y = x[:, :2] @ drawn(2, 4, seed=9) + drawn(n, 4, seed=10 + seed)
        cka.add({"x": x, "y": y})
        for pair in sums:
            sums[pair] += hsic(*({"x": x, "y": y}[name] for name in pair))
    expected = sums["xy"] / math.sqrt(sums["xx"] * sums["yy"])
    assert cka.between("x", "y") == pytest.approx(expected, rel=1e-9)
    assert cka.between("y", "x") == cka.between("x", "y")
    assert cka.matrix() == [[pytest.approx(1), pytest.approx(expected)], [pytest.approx(expected), pytest.approx(1)]]


def test_the_same_up_to_rotation_scale_and_shift_is_one() -> None:
    x = drawn(40, 6, seed=0)
    turned = torch.linalg.qr(drawn(6, 6, seed=1)).Q
    cka = LinearCKA()
    cka.add({"x": x, "same": x.clone(), "turned": 3 * x @ turned - 5, "stretched": x * torch.arange(1.0, 7) ** 2})
    assert cka.between("x", "same") == pytest.approx(1, abs=1e-12)
    assert cka.between("x", "turned") == pytest.approx(1, abs=1e-9)
    assert cka.between("x", "stretched") < 0.8


def test_what_is_unrelated_is_near_zero_however_wide() -> None:
    """The biased form would be far above: 200 things in 400 dimensions have about 0.67."""
    cka = LinearCKA()
    for seed in range(4):
        cka.add({"x": drawn(200, 400, seed=seed), "y": drawn(200, 400, seed=100 + seed)})
    assert abs(cka.between("x", "y")) < 0.02


def test_half_precision_is_computed_in_double() -> None:
    x, y = drawn(30, 4, seed=0), drawn(30, 4, seed=1)
    half, double = LinearCKA(), LinearCKA()
    half.add({"x": x.bfloat16() + 100, "y": y.bfloat16()})
    double.add({"x": (x.bfloat16() + 100).double(), "y": y.bfloat16().double()})
    assert half.matrix() == double.matrix()


def test_what_is_the_same_everywhere_has_none() -> None:
    cka = LinearCKA()
    cka.add({"x": drawn(10, 3, seed=0), "constant": torch.ones(10, 3)})
    assert math.isnan(cka.between("x", "constant"))
    assert math.isnan(LinearCKA().between("x", "y"))


def test_what_cannot_be_compared_is_refused() -> None:
    cka = LinearCKA()
    with pytest.raises(ValueError, match=r"the same 4 or more things in every representation, got \[4, 5\]"):
        cka.add({"x": drawn(4, 2, seed=0), "y": drawn(5, 2, seed=0)})
    with pytest.raises(ValueError, match="4 or more"):
        cka.add({"x": drawn(3, 2, seed=0)})
    cka.add({"x": drawn(4, 2, seed=0)})
    with pytest.raises(ValueError, match="CKA of x so far, now of y"):
        cka.add({"y": drawn(4, 2, seed=0)})
