"""The spatial vision aggregator against its equations in loops: groups, layers, windows, encoders, heads."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mixer_loops import (
    CELLS,
    WIDTHS,
    Vector,
    aggregator_layer,
    gradients_check,
    in_cell,
    layer_norm,
    norm,
    plus,
    sight,
    times,
    two_layers,
    weighty,
)
from mllm_align.vision.mixers import Map, Sight, make_mixer
from mllm_align.vision.mixers.sva import SpatialVisionAggregator

OPTIONS: dict[str, Any] = {"windows": [2, 1], "width": 4, "heads": 2, "depth": 2, "groups": 2}


def made(**changes: object) -> SpatialVisionAggregator:
    return weighty(SpatialVisionAggregator(WIDTHS, **{**OPTIONS, **changes}))


def aggregated(mixer: Any, seen: Sight) -> tuple[list[list[Vector]], dict[int, float]]:
    """The tokens, and which part of the attention each encoder has in the mean of all layers and groups."""
    maps = {0: seen.base, **{1 + k: each for k, each in enumerate(seen.extra) if each is not None}}
    (rows, columns), views = seen.cells, []
    shares = dict.fromkeys(maps, 0.0)
    for view in range(len(seen.base.values)):
        projected = {}
        for k, each in maps.items():
            first, _, second, normed = mixer.encoders[k]
            projected[k] = [layer_norm(normed, two_layers(first, second, v)) for v in each.values[view].tolist()]
        context = times(1 / len(projected[0]), plus(*projected[0]))
        tokens = []
        for row in range(rows):
            for column in range(columns):
                sources = {
                    k: in_cell(all_of, seen.cells, mixer.sides[k], (row, column)) for k, all_of in projected.items()
                }
                results: Vector = []
                for query, layers in zip(mixer.queries.tolist(), mixer.groups, strict=True):
                    state = query
                    for layer in layers:
                        state, parts = aggregator_layer(layer, state, context, sources)
                        for k, part in parts.items():
                            shares[k] += part / (len(mixer.groups) * len(layers))
                    results += state
                tokens.append(two_layers(mixer.projector[0], mixer.projector[2], results))
        views.append(tokens)
    count = len(views) * rows * columns
    return views, {k: share / count for k, share in shares.items()}


@pytest.mark.parametrize("off", [(), (0,), (1,), (0, 1)])
def test_it_is_what_its_equations_say(off: tuple[int, ...]) -> None:
    mixer = made()
    x, seen = sight(mixer, off=off)
    tokens, shares = aggregated(mixer, seen)
    mixer.watched = {}
    with torch.no_grad():
        found = mixer(x, seen)
    torch.testing.assert_close(found, torch.tensor(tokens, dtype=torch.float64), rtol=1e-8, atol=1e-8)
    assert set(mixer.watched) == {f"attention/{k}" for k in shares}
    for k, share in shares.items():
        assert float(mixer.watched[f"attention/{k}"]) == pytest.approx(share)
    assert sum(map(float, mixer.watched.values())) == pytest.approx(1)


def test_a_finer_grid_of_the_own_encoder_and_a_residual() -> None:
    mixer = made(base_window=2, residual=True, depth=1, groups=1)
    x, seen = sight(mixer, base_side=2)
    tokens, _ = aggregated(mixer, seen)
    assert mixer.gate is not None
    gate = math.tanh(mixer.gate.item())
    expected = x + gate * torch.tensor(tokens, dtype=torch.float64)
    mixer.watched = {}
    with torch.no_grad():
        torch.testing.assert_close(mixer(x, seen), expected, rtol=1e-8, atol=1e-8)
    assert float(mixer.watched["gate"]) == pytest.approx(abs(gate))
    own, new = ([norm(v) for view in each for v in view] for each in (x.tolist(), tokens))
    assert float(mixer.watched["added"]) == pytest.approx(abs(gate) * sum(new) / sum(own))


def test_tokens_replace_those_of_the_projector_without_a_residual() -> None:
    mixer = made()
    x, seen = sight(mixer)
    assert mixer.replaces
    assert not mixer.starts_as_identity
    assert torch.equal(mixer(x, seen), mixer(torch.zeros_like(x), seen))


def test_a_query_sees_its_windows_and_the_mean_of_the_own_encoder() -> None:
    """Of a further encoder one cell changes one token; of the own one all tokens, through the context."""
    mixer = made()
    x, seen = sight(mixer)
    fine, coarse = seen.extra
    assert fine is not None
    assert mixer.wants(CELLS) == [(4, 6), (2, 3)]
    changed, own = fine.values.clone(), seen.base.values.clone()
    changed[:, 0, 0] += 1
    own[:, 0, 0] += 1

    def moved(other: Sight) -> list[bool]:
        with torch.no_grad():
            return ((mixer(x, other) - mixer(x, seen)).abs().amax(dim=(0, 2)) > 1e-9).tolist()

    assert moved(seen._replace(extra=(Map(changed, fine.cells), coarse))) == [True] + [False] * 5
    assert moved(seen._replace(base=Map(own, seen.base.cells))) == [True] * 6


def test_gradients() -> None:
    mixer = made(depth=1, groups=1, residual=True)
    assert gradients_check(mixer, *sight(mixer, cells=(1, 1), views=1))


def test_with_a_residual_the_gate_moves_first() -> None:
    torch.manual_seed(0)
    mixer = SpatialVisionAggregator(WIDTHS, **{**OPTIONS, "residual": True}).double()
    optimizer = torch.optim.SGD(mixer.parameters(), lr=0.1)
    x, seen = sight(mixer)
    assert mixer.starts_as_identity
    assert not mixer.replaces
    assert torch.equal(mixer(x, seen), x)
    target = torch.randn_like(x)

    def largest() -> dict[str, float]:
        optimizer.zero_grad()
        (mixer(x, seen) - target).square().mean().backward()
        return {name: float(parameter.grad.abs().max()) for name, parameter in mixer.named_parameters()}  # type: ignore[union-attr]

    assert {name for name, most in largest().items() if most > 0} == {"gate"}
    optimizer.step()
    still = {name for name, most in largest().items() if most < 1e-15}
    assert not still


def test_grids_that_do_not_fit_are_named() -> None:
    mixer = made()
    x: Tensor = sight(mixer)[0]
    with pytest.raises(ValueError, match="set base_window: 2"):
        mixer(*sight(mixer, base_side=2))
    seen = sight(mixer)[1]
    odd = seen._replace(base=Map(torch.zeros(2, 8, 6, dtype=torch.float64), (2, 4)))
    with pytest.raises(ValueError, match="do not divide into square windows"):
        mixer(x, odd)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"heads": 3}, "width 1024 cannot be split into 3 heads"),
        ({"depth": 0}, "depth must be a whole number"),
        ({"groups": True}, "groups must be a whole number"),
        ({"windows": [1]}, "windows must be one value or a list of 2"),
        ({"base_window": -1}, "base_window must be a whole number"),
        ({"residual": "no"}, "residual must be true or false"),
        ({"llm_layers": -1}, "llm_layers must be a whole number of 0 or more"),
        ({"llm_start": 1.5}, "llm_start must be a whole number"),
        ({"llm_stride": 0}, "llm_stride must be a whole number of 1 or more"),
        ({"llm_zero_init": 1}, "llm_zero_init must be true or false"),
    ],
)
def test_what_cannot_be_built_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=f"mixer 'sva': {said}"):
        make_mixer("sva", WIDTHS, options)
