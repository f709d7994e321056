"""Channel concatenation against one wide linear layer in loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from mixer_loops import gradients_check, layer_norm, norm, plus, sight, weighty
from mllm_align.vision.mixers import Widths, make_mixer
from mllm_align.vision.mixers.concat import ChannelConcat

WIDTHS = Widths(base=3, place=7, language=8, extra=(5, 4))


def through(mixer: ChannelConcat, k: int, vector: list[float]) -> list[float]:
    """What the new columns make of an encoder's vector."""
    columns: Any = mixer.columns[k]
    vector = layer_norm(mixer.norms[k], vector) if mixer.options["norm"] == "layer" else vector
    return [sum(w * v for w, v in zip(row, vector, strict=True)) for row in columns.weight.tolist()]


@pytest.mark.parametrize("off", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("kind", ["none", "layer"])
def test_it_is_what_its_formula_says(kind: str, off: tuple[int, ...]) -> None:
    mixer = weighty(ChannelConcat(WIDTHS, norm=kind))
    x, seen = sight(mixer, off=off)
    expected = torch.empty_like(x)
    for view in range(len(x)):
        for cell in range(x.shape[1]):
            parts = [
                through(mixer, k, each.values[view, cell].tolist())
                for k, each in enumerate(seen.extra)
                if each is not None
            ]
            expected[view, cell] = torch.tensor(plus(x[view, cell].tolist(), *parts), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x, seen), expected, rtol=1e-9, atol=1e-9)


def test_it_is_one_linear_layer_of_all_channels() -> None:
    """Prismatic's and Eagle's layer reads [base; extra 1; extra 2]: this one's columns are the right part of it."""
    mixer = weighty(ChannelConcat(WIDTHS))
    own = nn.Linear(3, 7).double()
    _, seen = sight(mixer)
    columns: Any = mixer.columns
    wide = nn.Linear(3 + 5 + 4, 7).double()
    with torch.no_grad():
        wide.weight.copy_(torch.cat([own.weight, columns[0].weight, columns[1].weight], dim=1))
        wide.bias.copy_(own.bias)
        joined = torch.cat([each.values for each in (seen.base, *seen.extra) if each is not None], dim=-1)
        torch.testing.assert_close(mixer(own(seen.base.values), seen), wide(joined))


@pytest.mark.parametrize("kind", ["none", "layer"])
def test_gradients(kind: str) -> None:
    mixer = weighty(ChannelConcat(WIDTHS, norm=kind))
    assert gradients_check(mixer, *sight(mixer, cells=(1, 2), views=1))


def test_zero_columns_have_gradients_from_the_first_step() -> None:
    mixer = ChannelConcat(WIDTHS).double()
    assert mixer.starts_as_identity
    x, seen = sight(mixer)
    assert torch.equal(mixer(x, seen), x)
    mixer(x, seen).square().sum().backward()
    assert all(each.grad is not None and (each.grad != 0).all() for each in mixer.columns.parameters())


def test_random_columns_start_as_in_a_layer_of_the_new_width() -> None:
    mixer = ChannelConcat(Widths(base=30, place=200, language=8, extra=(50, 20)), init="random")
    assert not mixer.starts_as_identity
    bound = 1 / math.sqrt(30 + 50 + 20)
    for each in (parameter.detach() for parameter in mixer.parameters()):
        assert each.abs().max() <= bound
        assert each.abs().max() > 0.95 * bound
        assert float(each.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_what_is_watched() -> None:
    mixer = weighty(ChannelConcat(WIDTHS))
    mixer.watched = {}
    x, seen = sight(mixer)
    mixer(x, seen)
    old = [norm(vector) for view in x.tolist() for vector in view]
    for k, each in enumerate(seen.extra):
        assert each is not None
        new = [norm(through(mixer, k, vector)) for view in each.values.tolist() for vector in view]
        assert float(mixer.watched[f"added/{1 + k}"]) == pytest.approx(sum(new) / (sum(new) + sum(old)))


@pytest.mark.parametrize(
    ("options", "said"), [({"init": "ones"}, "init must be one of zero, random"), ({"norm": "l2"}, "norm must be one")]
)
def test_what_cannot_be_built_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=f"mixer 'concat': {said}"):
        make_mixer("concat", WIDTHS, options)
