"""Heads: made once, for the widths that are told, and used in the precision of what they are given."""

from __future__ import annotations

import pytest
import torch

from mllm_align.objectives.projection import Projection

SIDES = {"regions": ("a", "b"), "texts": ("c",)}
WIDTHS = {"a": 5, "b": 5, "c": 4}


def test_heads_are_linear_and_made_once() -> None:
    heads = Projection("Mine", SIDES, 3)
    with pytest.raises(ValueError, match="Mine: its heads are not made: call set_widths"):
        heads("regions", torch.ones(2, 5))
    heads.set_widths(WIDTHS)
    weights = {name: value.clone() for name, value in heads.state_dict().items()}
    heads.set_widths(WIDTHS)
    assert all(torch.equal(value, weights[name]) for name, value in heads.state_dict().items())
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        "heads.regions.weight": (3, 5),
        "heads.texts.weight": (3, 4),
    }
    values = torch.randn(2, 4, dtype=torch.float64)
    found = heads("texts", values)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, values @ weights["heads.texts.weight"].double().T)


def test_without_heads_nothing_changes() -> None:
    values = torch.randn(2, 4)
    none = Projection("Mine", SIDES, None)
    assert none("texts", values) is values
    assert not list(none.parameters())
    none.set_widths(dict.fromkeys("abc", 4))


@pytest.mark.parametrize(
    ("dim", "widths", "message"),
    [
        (3, {"a": 5, "c": 4}, "width of feature 'b' is not told"),
        (3, WIDTHS | {"b": 6}, r"features of its regions differ in width: \[5, 6\]"),
        (None, WIDTHS, "both sides must be of one width"),
    ],
)
def test_widths_that_do_not_fit(dim: int | None, widths: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Projection("Mine", SIDES, dim).set_widths(widths)


def test_heads_of_other_widths() -> None:
    heads = Projection("Mine", SIDES, 3)
    heads.set_widths(WIDTHS)
    with pytest.raises(ValueError, match="its heads are made for widths"):
        heads.set_widths(WIDTHS | {"c": 9})


@pytest.mark.parametrize("dim", [0, 1.5, True])
def test_a_width_that_is_none(dim: object) -> None:
    with pytest.raises(ValueError, match="dim must be a whole number above 0"):
        Projection("Mine", SIDES, dim)  # type: ignore[arg-type]
