"""I-MoF against its formula in loops, and the order of its tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixer_loops import WIDTHS, gradients_check, norm, sight, two_layers, weighty
from mllm_align.vision.mixers import Sight
from mllm_align.vision.mixers.interleave import InterleavedMoF


def expected(mixer: InterleavedMoF, x: Tensor, seen: Sight) -> Tensor:
    """For each cell the model's own token, then Linear-GELU-Linear of what each further encoder has there."""
    views = []
    for view in range(len(x)):
        tokens = []
        for cell in range(x.shape[1]):
            tokens.append(x[view, cell].tolist())
            for k, each in enumerate(seen.extra):
                first, _, second = mixer.adapters[k]  # type: ignore[misc]
                zeros = [0.0] * x.shape[2]
                tokens.append(zeros if each is None else two_layers(first, second, each.values[view, cell].tolist()))
        views.append(tokens)
    return torch.tensor(views, dtype=torch.float64)


@pytest.mark.parametrize("off", [(), (0,), (1,), (0, 1)])
def test_it_is_what_its_formula_says(off: tuple[int, ...]) -> None:
    mixer = weighty(InterleavedMoF(WIDTHS))
    x, seen = sight(mixer, off=off)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x, seen), expected(mixer, x, seen), rtol=1e-9, atol=1e-9)


def test_tokens_alternate_row_by_row() -> None:
    """With one further encoder the model's own tokens are the even ones, as in MMVP's code."""
    mixer = weighty(InterleavedMoF(WIDTHS._replace(extra=(5,))))
    x, seen = sight(mixer)
    out = mixer(x, seen)
    assert out.shape == (2, 12, 6)
    assert torch.equal(out[:, 0::2], x)
    (extra,) = seen.extra
    assert extra is not None
    for cell in range(6):
        torch.testing.assert_close(out[:, 2 * cell + 1], mixer.adapters[0](extra.values[:, cell]))


def test_it_says_how_many_tokens_there_are() -> None:
    mixer = InterleavedMoF(WIDTHS)
    assert mixer.num_tokens((24, 24)) == 3 * 576
    assert mixer.num_tokens((2, 3)) == weighty(mixer)(*sight(mixer)).shape[1]
    assert mixer.num_tokens((1, 1)) == 3
    assert mixer.on_grid
    assert not mixer.starts_as_identity


def test_gradients() -> None:
    mixer = weighty(InterleavedMoF(WIDTHS))
    assert gradients_check(mixer, *sight(mixer, cells=(1, 2), views=1))


def test_what_is_watched() -> None:
    mixer = weighty(InterleavedMoF(WIDTHS))
    mixer.watched = {}
    x, seen = sight(mixer, off=[1])
    out = mixer(x, seen)
    for number in range(3):
        vectors = [vector for view in out[:, number::3].tolist() for vector in view]
        assert float(mixer.watched[f"norm/{number}"]) == pytest.approx(sum(map(norm, vectors)) / len(vectors))
