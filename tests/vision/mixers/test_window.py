"""Window attention against its formula in loops: which keys a token sees, and which parameters move when."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixer_loops import CELLS, WIDTHS, attend, gradients_check, in_cell, linear, norm, plus, sight, weighty
from mllm_align.vision.mixers import Map, Sight, make_mixer
from mllm_align.vision.mixers.window import WindowAttention

OPTIONS = {"window": [2, 1], "width": 4, "heads": 2}


def made(**changes: object) -> WindowAttention:
    return weighty(WindowAttention(WIDTHS, **{**OPTIONS, **changes}))  # type: ignore[arg-type]


def added(mixer: WindowAttention, x: Tensor, seen: Sight) -> tuple[list[list[list[float]]], dict[int, float]]:
    """What each token has added to it, and which part of the attention each encoder has."""
    (rows, columns), views = seen.cells, []
    shares = {k: 0.0 for k, each in enumerate(seen.extra) if each is not None}
    for view in range(len(x)):
        tokens = []
        for row in range(rows):
            for column in range(columns):
                sources = {
                    k: in_cell(each.values[view].tolist(), seen.cells, mixer.sides[k], (row, column))
                    for k, each in enumerate(seen.extra)
                    if each is not None
                }
                out, parts = attend(mixer.attention, x[view, row * columns + column].tolist(), sources)
                tokens.append(linear(mixer.out, out))
                for k, part in parts.items():
                    shares[k] += part / (len(x) * rows * columns)
        views.append(tokens)
    return views, shares


@pytest.mark.parametrize("off", [(), (0,), (1,)])
@pytest.mark.parametrize("heads", [1, 2])
def test_it_is_what_its_formula_says(heads: int, off: tuple[int, ...]) -> None:
    mixer = made(heads=heads)
    x, seen = sight(mixer, off=off)
    new, shares = added(mixer, x, seen)
    expected = torch.tensor(
        [
            [plus(one, other) for one, other in zip(own, more, strict=True)]
            for own, more in zip(x.tolist(), new, strict=True)
        ],
        dtype=torch.float64,
    )
    mixer.watched = {}
    with torch.no_grad():
        torch.testing.assert_close(mixer(x, seen), expected, rtol=1e-9, atol=1e-9)
    for k, share in shares.items():
        assert float(mixer.watched[f"attention/{1 + k}"]) == pytest.approx(share)
    assert sum(float(mixer.watched[f"attention/{1 + k}"]) for k in shares) == pytest.approx(1)
    lengths = [sum(norm(vector) for view in each for vector in view) for each in (new, x.tolist())]
    assert float(mixer.watched["added"]) == pytest.approx(lengths[0] / lengths[1])


def test_nothing_to_look_at_leaves_tokens_as_they_are() -> None:
    mixer = made()
    x, seen = sight(mixer, off=[0, 1])
    assert torch.equal(mixer(x, seen), x)


def test_a_token_sees_its_window_alone() -> None:
    """Another value in the last row and column of the fine grid changes the last token, and no other."""
    mixer = made()
    x, seen = sight(mixer)
    fine, coarse = seen.extra
    assert fine is not None
    assert mixer.wants(CELLS) == [(4, 6), (2, 3)]
    changed = fine.values.clone()
    changed[:, -1, 0] += 1
    with torch.no_grad():
        delta = mixer(x, Sight(seen.cells, seen.base, (Map(changed, fine.cells), coarse))) - mixer(x, seen)
    assert (delta.abs().amax(dim=(0, 2)) > 1e-9).tolist() == [False] * 5 + [True]


def test_gradients() -> None:
    mixer = made()
    assert gradients_check(mixer, *sight(mixer, cells=(1, 2), views=1))


def test_the_last_layer_moves_first_and_everything_at_the_second_step() -> None:
    torch.manual_seed(0)
    mixer = WindowAttention(WIDTHS, window=2, heads=2).double()
    optimizer = torch.optim.SGD(mixer.parameters(), lr=0.1)
    x, seen = sight(mixer)
    assert torch.equal(mixer(x, seen), x)
    target = torch.randn_like(x)

    def largest() -> dict[str, float]:
        optimizer.zero_grad()
        (mixer(x, seen) - target).square().mean().backward()
        return {name: float(parameter.grad.abs().max()) for name, parameter in mixer.named_parameters()}  # type: ignore[union-attr]

    assert {name for name, most in largest().items() if most > 0} == {"out.weight"}
    optimizer.step()
    assert all(most > 1e-12 for most in largest().values())


def test_keys_are_as_wide_as_the_own_encoder_by_default() -> None:
    mixer = WindowAttention(WIDTHS)
    assert mixer.out.weight.shape == (6, WIDTHS.base)
    assert mixer.options == {"window": [2, 2], "width": 6, "heads": 1, "encoder_dropout": 0.0}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"heads": 4}, "width 6 cannot be split into 4 heads"),
        ({"heads": 0}, "heads must be a whole number of 1 or more"),
        ({"window": 0}, "window must be a whole number"),
        ({"window": [2, 2, 2]}, "window must be one value or a list of 2"),
        ({"width": 2.5}, "width must be a whole number"),
    ],
)
def test_what_cannot_be_built_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=f"mixer 'window': {said}"):
        make_mixer("window", WIDTHS, options)
