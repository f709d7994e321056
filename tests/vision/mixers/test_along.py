"""The aggregator's layers in the language model against their equations in loops, and what goes along for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mixer_loops import (
    CELLS,
    WIDTHS,
    Vector,
    aggregator_layer,
    in_cell,
    layer_norm,
    plus,
    sight,
    times,
    two_layers,
    weighty,
)
from mllm_align.vision.mixers import Sight
from mllm_align.vision.mixers.along import TokenRows
from mllm_align.vision.mixers.sva import AggregatorLayer, SpatialVisionAggregator

OPTIONS: dict[str, Any] = {"windows": [2, 1], "base_window": 2, "width": 4, "heads": 2, "depth": 1}


def made(**changes: object) -> SpatialVisionAggregator:
    return weighty(SpatialVisionAggregator(WIDTHS, **{**OPTIONS, "llm_layers": 2, **changes}))


def passed(mixer: SpatialVisionAggregator, off: tuple[int, ...] = ()) -> tuple[Sight, torch.Tensor]:
    """Two views that go through the mixer, and what goes along with each token."""
    along: list[torch.Tensor] = []
    x, seen = sight(mixer, base_side=2, off=off)
    mixer(x, seen._replace(along=along))
    (rows,) = along
    return seen, rows


def inserted(mixer: Any, number: int, seen: Sight, view: int, cell: tuple[int, int], query: Vector) -> Vector:
    """The state of one image token behind one layer."""
    maps = {0: seen.base, **{1 + k: each for k, each in enumerate(seen.extra) if each is not None}}
    projected = {}
    for k, each in maps.items():
        first, _, second, normed = mixer.encoders[k]
        projected[k] = [layer_norm(normed, two_layers(first, second, v)) for v in each.values[view].tolist()]
    context = times(1 / len(projected[0]), plus(*projected[0]))
    sources = {k: in_cell(all_of, seen.cells, mixer.sides[k], cell) for k, all_of in projected.items()}
    return aggregator_layer(mixer.inserted[number], query, context, sources)[0]


@pytest.mark.parametrize("off", [(), (0,), (1,), (0, 1)])
@torch.no_grad()
def test_a_layer_is_what_its_equations_say(off: tuple[int, ...]) -> None:
    mixer = made()
    seen, rows = passed(mixer, off)
    states = torch.randn(2, 6, WIDTHS.language, dtype=torch.float64)
    for number in range(2):
        found = mixer.insert(number, states.flatten(0, 1), rows.flatten(0, 1)).view_as(states)
        expected = [
            [
                inserted(mixer, number, seen, view, divmod(cell, CELLS[1]), states[view, cell].tolist())
                for cell in range(6)
            ]
            for view in range(2)
        ]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_tokens_of_no_cell_stay_and_those_of_images_with_another_encoder_missing_go_together() -> None:
    mixer = made()
    _, whole = passed(mixer)
    _, partly = passed(mixer, off=(1,))
    nothing = torch.zeros(3, whole.shape[-1], dtype=torch.float64)
    rows = torch.cat([whole[0], nothing, partly[0]])
    states = torch.randn(15, WIDTHS.language, dtype=torch.float64)
    together = mixer.insert(1, states, rows)
    assert torch.equal(together[6:9], states[6:9])
    torch.testing.assert_close(together[:6], mixer.insert(1, states[:6], whole[0]))
    torch.testing.assert_close(together[9:], mixer.insert(1, states[9:], partly[0]))
    assert (together[9:] - mixer.insert(1, states[9:], whole[0])).abs().max() > 1e-3


def test_at_first_nothing_changes_and_the_last_matrix_alone_has_a_gradient() -> None:
    mixer = SpatialVisionAggregator(WIDTHS, **{**OPTIONS, "llm_layers": 1, "residual": True}).double()
    assert mixer.starts_as_identity
    _, rows = passed(mixer)
    # In less than the mixer's own precision, too: the states themselves never pass through its dtype.
    states = torch.randn(12, WIDTHS.language, dtype=torch.float64)
    assert torch.equal(mixer.float().insert(0, states, rows.flatten(0, 1)), states)
    mixer.double().insert(0, states, rows.flatten(0, 1)).square().sum().backward()
    moved = {name for name, p in mixer.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == {"inserted.0.mlp.2.weight"}
    faithful = SpatialVisionAggregator(
        WIDTHS, **{**OPTIONS, "llm_layers": 1, "residual": True, "llm_zero_init": False}
    )
    assert not faithful.starts_as_identity
    assert faithful.get_parameter("inserted.0.mlp.2.weight").abs().max() > 0


def test_gradients() -> None:
    """Of states, of what goes along, and of every parameter; ones and zeros that say who takes part have none."""
    mixer = made(llm_layers=1)
    _, drawn = passed(mixer)
    rows, states = drawn[0, :2].detach().requires_grad_(), torch.randn(2, WIDTHS.language, dtype=torch.float64)
    names, parameters = zip(*mixer.inserted.named_parameters(), strict=True)

    def run(states: torch.Tensor, context_and_windows: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        given = {f"inserted.{name}": value for name, value in zip(names, values, strict=True)}
        whole = torch.cat([rows.detach()[:, :3], context_and_windows], dim=1)
        return torch.func.functional_call(
            Inserting(mixer), {f"mixer.{k}": v for k, v in given.items()}, (states, whole)
        )

    inputs = [states, rows.detach()[:, 3:], *parameters]
    assert torch.autograd.gradcheck(run, [each.detach().clone().requires_grad_() for each in inputs])
    mixer.insert(0, states, rows).sum().backward()
    assert rows.grad is not None
    assert not rows.grad[:, :3].any()


def test_encoder_dropout_reaches_the_layers() -> None:
    mixer = made(encoder_dropout=0.5).train()
    kept = {tuple(passed(mixer)[1][0, 0, :3].tolist()) for _ in range(40)}
    assert kept == {(1.0, a, b) for a in (0.0, 1.0) for b in (0.0, 1.0)}


def test_a_layer_of_cambrian_1_has_as_many_parameters() -> None:
    """22.1 million in its 8B model: width 4096, four encoders, one of which has 4 x 4 windows."""
    with torch.device("meta"):
        layer = AggregatorLayer(1024, 16, [1, 1, 1, 4], 4096)
    assert sum(each.numel() for each in layer.parameters()) / 1e6 == pytest.approx(22.1, abs=0.05)


def test_behind_which_layers_they_lie() -> None:
    mixer = made(llm_layers=0)
    assert mixer.after == ()
    assert not mixer.inserted
    assert made(llm_start=1, llm_stride=2).after == (1, 3)


def test_rows_come_apart_as_they_were_joined() -> None:
    rows = TokenRows(2, [2, 1])
    assert rows.size == 2 + 2 + 8 + 2
    context, windows = torch.randn(3, 2), torch.randn(3, 4, 2)
    parted, ((first, has, one), (second, zeros, none)) = rows.parts(rows.joined(context, [(0, windows, 1.0)]))
    assert (first, second) == (0, 1)
    assert torch.equal(parted, context)
    assert torch.equal(has, windows)
    assert torch.equal(torch.as_tensor(one), torch.ones(3))
    assert not zeros.any()
    assert not torch.as_tensor(none).any()


class Inserting(torch.nn.Module):
    """The first layer as a module's forward, for functional calls."""

    def __init__(self, mixer: SpatialVisionAggregator) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return self.mixer.insert(0, states, rows)
