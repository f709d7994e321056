"""Parts that several mixers share: windows of cells, norms, and attention whose sources may be left out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mixer_loops import attend, in_cell, norm, two_layers
from mllm_align.vision.mixers.parts import NORMS, Attention, UnitNorm, length, mlp, normaliser, precise, windows


@pytest.mark.parametrize(("cells", "side"), [((2, 3), 1), ((2, 3), 2), ((3, 1), 3)])
def test_windows_hold_what_lies_in_their_cell(cells: tuple[int, int], side: int) -> None:
    rows, columns = cells
    values = torch.arange(2 * rows * columns * side**2 * 4).view(2, -1, 4)
    expected = [
        in_cell(view, cells, side, (row, column))
        for view in values.tolist()
        for row in range(rows)
        for column in range(columns)
    ]
    assert windows(values, cells, side).tolist() == expected


def test_mlp_is_linear_gelu_linear() -> None:
    made = mlp(5, 7, 3).double()
    vector = [0.3, -1.2, 2.0, 0.0, -0.4]
    expected = torch.tensor(two_layers(made[0], made[2], vector), dtype=torch.float64)
    torch.testing.assert_close(made(torch.tensor(vector, dtype=torch.float64)), expected)


def test_unit_norm_has_one_length_that_is_learned() -> None:
    made, x = UnitNorm(9), torch.randn(4, 2, 9) * 50
    torch.testing.assert_close(made(x).norm(dim=-1), torch.full((4, 2), 3.0))
    torch.testing.assert_close(nn.functional.cosine_similarity(made(x), x, dim=-1), torch.ones(4, 2))
    made(x)[0, 0, 0].backward()
    assert made.scale.grad is not None
    assert made.scale.grad != 0
    assert made.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(made(torch.zeros(1, 9)), torch.zeros(1, 9))


def test_norms_by_name() -> None:
    assert [type(normaliser(kind, 4)) for kind in NORMS] == [nn.Identity, nn.LayerNorm, UnitNorm]


def test_length_is_the_mean_over_vectors_in_float32() -> None:
    x = torch.randn(2, 3, 5, requires_grad=True)
    found = length(x)
    expected = [norm(vector) for view in x.tolist() for vector in view]
    assert float(found) == pytest.approx(sum(expected) / 6)
    assert not found.requires_grad
    assert length(x.bfloat16()).dtype == torch.float32
    assert precise(x.double()).dtype == torch.float64


class TestAttention:
    def drawn(self) -> tuple[Attention, torch.Tensor, torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        attention = Attention(6, [5, 4], 8, 2, bias=True).double()
        one, two = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(3, 1, 4, dtype=torch.float64)
        return attention, torch.randn(3, 6, dtype=torch.float64), one, two

    def test_by_loops(self) -> None:
        attention, query, one, two = self.drawn()
        with torch.no_grad():
            out, parts = attention(query, [(0, one, 1.0), (1, two, 1.0)])
        total = {0: 0.0, 1: 0.0}
        for m in range(3):
            expected, shares = attend(attention, query[m].tolist(), {0: one[m].tolist(), 1: two[m].tolist()})
            torch.testing.assert_close(out[m], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)
            total = {which: total[which] + share / 3 for which, share in shares.items()}
        assert {which: float(part) for which, part in parts.items()} == pytest.approx(total)

    @pytest.mark.parametrize("left", [0, 1])
    def test_a_source_of_weight_zero_is_as_though_not_there_but_has_gradients(self, left: int) -> None:
        attention, query, one, two = self.drawn()
        sources = [(0, one), (1, two)]
        out, parts = attention(query, [(which, has, float(which != left)) for which, has in sources])
        alone, _ = attention(query, [(which, has, 1.0) for which, has in sources if which != left])
        torch.testing.assert_close(out, alone, rtol=1e-12, atol=1e-12)
        assert parts[left] == 0
        assert float(parts[1 - left]) == pytest.approx(1)
        out.sum().backward()
        gradients = {name: given for name, each in attention.named_parameters() if (given := each.grad) is not None}
        assert len(gradients) == len(list(attention.parameters()))
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        assert all(
            not gradients[name].any() for name in gradients if name.startswith((f"key.{left}", f"value.{left}"))
        )  # type: ignore[union-attr]

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_nothing_to_attend_to_gives_zeros(self, dtype: torch.dtype) -> None:
        attention, query, one, two = self.drawn()
        attention.to(dtype)
        out, parts = attention(query.to(dtype), [(0, one.to(dtype), 0.0), (1, two.to(dtype), 0.0)])
        assert out.dtype == dtype
        assert not out.any()
        assert not any(parts.values())
        out.sum().backward()
        assert all(each.grad is not None and each.grad.isfinite().all() for each in attention.parameters())
