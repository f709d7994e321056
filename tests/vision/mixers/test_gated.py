"""The gated residual against its formula in loops, and which of its parameters move when."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mixer_loops import WIDTHS, gradients_check, layer_norm, norm, plus, sight, two_layers, weighty
from mllm_align.vision.mixers import Sight, make_mixer
from mllm_align.vision.mixers.gated import GatedResidual


def added(mixer: GatedResidual, seen: Sight, k: int, view: int, cell: int) -> list[float]:
    """tanh(gate) * MLP(extra) of one encoder in one cell."""
    each = seen.extra[k]
    assert each is not None
    vector = each.values[view, cell].tolist()
    vector = layer_norm(mixer.norms[k], vector) if mixer.options["norm"] == "layer" else vector
    first, _, second = mixer.adapters[k]  # type: ignore[misc]
    branch, gates = two_layers(first, second, vector), mixer.gates[k].tolist()
    return [math.tanh(gates[c % len(gates)]) * value for c, value in enumerate(branch)]


@pytest.mark.parametrize("off", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("kind", ["none", "layer"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_it_is_what_its_formula_says(per_channel: bool, kind: str, off: tuple[int, ...]) -> None:
    mixer = weighty(GatedResidual(WIDTHS, per_channel=per_channel, norm=kind))
    assert mixer.gates.shape == (2, 6 if per_channel else 1)
    x, seen = sight(mixer, off=off)
    expected = torch.empty_like(x)
    for view in range(len(x)):
        for cell in range(x.shape[1]):
            parts = [added(mixer, seen, k, view, cell) for k in range(2) if k not in off]
            expected[view, cell] = torch.tensor(plus(x[view, cell].tolist(), *parts), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x, seen), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("per_channel", [False, True])
def test_gradients(per_channel: bool) -> None:
    mixer = weighty(GatedResidual(WIDTHS, per_channel=per_channel, norm="layer"))
    assert gradients_check(mixer, *sight(mixer, cells=(1, 2), views=1))


@pytest.mark.parametrize("per_channel", [False, True])
def test_gates_move_first_and_everything_at_the_second_step(per_channel: bool) -> None:
    torch.manual_seed(0)
    mixer = GatedResidual(WIDTHS, per_channel=per_channel, norm="layer").double()
    optimizer = torch.optim.SGD(mixer.parameters(), lr=0.1)
    x, seen = sight(mixer)
    target = torch.randn_like(x)

    def moved() -> dict[str, bool]:
        optimizer.zero_grad()
        loss: Tensor = (mixer(x, seen) - target).square().mean()
        loss.backward()
        return {
            name: parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
            for name, parameter in mixer.named_parameters()
        }

    assert {name for name, yes in moved().items() if yes} == {"gates"}
    optimizer.step()
    assert all(moved().values())


def test_what_is_watched() -> None:
    mixer = weighty(GatedResidual(WIDTHS, per_channel=True))
    mixer.watched = {}
    x, seen = sight(mixer)
    mixer(x, seen)
    own = sum(norm(vector) for view in x.tolist() for vector in view)
    for k in range(2):
        new = sum(norm(added(mixer, seen, k, view, cell)) for view in range(2) for cell in range(6))
        assert float(mixer.watched[f"added/{1 + k}"]) == pytest.approx(new / own)
        gates = [abs(math.tanh(each)) for each in mixer.gates[k].tolist()]
        assert float(mixer.watched[f"gate/{1 + k}"]) == pytest.approx(sum(gates) / len(gates))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"per_channel": 1}, "per_channel must be true or false"), ({"norm": "l2"}, "norm must be one of none, layer")],
)
def test_what_cannot_be_built_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=f"mixer 'gated': {said}"):
        make_mixer("gated", WIDTHS, options)
