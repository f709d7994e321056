"""What all mixers share: checks of what they are given, encoder dropout, dtypes, options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixer_loops import CELLS, WIDTHS, sight
from mllm_align.vision.mixers import Map, Mixer, Sight, Widths


class Adding(Mixer):
    """x + the first channel of each further encoder, times a parameter."""

    place = "output"

    def __init__(self, widths: Widths, *, scale: float = 1.0, encoder_dropout: float = 0.0) -> None:
        super().__init__(widths, encoder_dropout=encoder_dropout, scale=scale)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        for each in self.seen(x, sight):
            x = x + (each.values[..., :1] * self.scale * each.weight).to(x.dtype)
        return x


def test_what_it_is_given_comes_back_by_number() -> None:
    mixer = Adding(WIDTHS).double()
    x, seen = sight(mixer, off=[0])
    found = mixer.seen(x, seen)
    assert [each.index for each in found] == [1]
    assert seen.extra[1] is not None
    assert torch.equal(found[0].values, seen.extra[1].values)
    assert mixer.wants((4, 5)) == [(4, 5)] * 2
    assert mixer.num_tokens((4, 5)) == 20
    assert mixer.options == {"scale": 1.0, "encoder_dropout": 0.0}


def test_values_come_in_the_dtype_of_the_parameters() -> None:
    mixer = Adding(WIDTHS)
    x, seen = sight(mixer, dtype=torch.bfloat16)
    assert all(each.values.dtype == torch.float32 for each in mixer.seen(x, seen))
    assert mixer(x, seen).dtype == torch.bfloat16


def changed(seen: Sight, **changes: Any) -> Sight:
    (one, two) = seen.extra
    assert one is not None
    return seen._replace(extra=(Map(changes.get("values", one.values), changes.get("cells", one.cells)), two))


def test_other_shapes_are_named() -> None:
    mixer = Adding(WIDTHS).double()
    x, seen = sight(mixer)
    with pytest.raises(ValueError, match="built for 2 further encoders, given 1"):
        mixer(x, seen._replace(extra=seen.extra[:1]))
    with pytest.raises(ValueError, match=r"2 x 3 vectors of 6 expected, given \(5, 6\)"):
        mixer(x[:, :5], seen)
    with pytest.raises(ValueError, match=r"2 x 3 vectors of 6 expected, given \(6, 5\)"):
        mixer(x[..., :5], seen)
    with pytest.raises(ValueError, match=r"further encoder 1: .* in 2 x 3 cells expected, given .* in 3 x 2"):
        mixer(x, changed(seen, cells=(3, 2)))
    with pytest.raises(ValueError, match=r"further encoder 1: values \(2, 6, 5\).*given \(2, 6, 4\)"):
        mixer(x, changed(seen, values=torch.zeros(2, 6, 4)))
    with pytest.raises(ValueError, match=r"further encoder 1: values \(2, 6, 5\).*given \(1, 6, 5\)"):
        mixer(x, changed(seen, values=torch.zeros(1, 6, 5)))


def test_dropout_draws_each_encoder_by_itself_in_training_alone() -> None:
    mixer = Adding(WIDTHS, encoder_dropout=0.25).double()
    x, seen = sight(mixer, views=1)
    torch.manual_seed(0)
    draws = [tuple(each.weight for each in mixer.seen(x, seen)) for _ in range(2000)]
    counts = {pair: draws.count(pair) / len(draws) for pair in set(draws)}
    # Five standard deviations of the largest of them.
    wanted = {(1.0, 1.0): 9 / 16, (1.0, 0.0): 3 / 16, (0.0, 1.0): 3 / 16, (0.0, 0.0): 1 / 16}
    assert counts == pytest.approx(wanted, abs=0.056)
    mixer.eval()
    assert all([each.weight for each in mixer.seen(x, seen)] == [1, 1] for _ in range(50))


def test_dropout_draws_from_the_generator_of_the_host() -> None:
    """So a pass that is computed again, with the same random state, leaves out the same."""
    mixer = Adding(WIDTHS, encoder_dropout=0.5).double()
    x, seen = sight(mixer)
    torch.manual_seed(3)
    first = [mixer(x, seen) for _ in range(5)]
    torch.manual_seed(3)
    again = [mixer(x, seen) for _ in range(5)]
    assert all(map(torch.equal, first, again))
    assert not all(torch.equal(each, first[0]) for each in first)


def test_without_dropout_nothing_is_drawn() -> None:
    mixer = Adding(WIDTHS).double()
    x, seen = sight(mixer)
    before = torch.get_rng_state()
    mixer(x, seen)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("value", [1, -0.1, True, "half", None])
def test_a_dropout_that_cannot_be_is_named(value: Any) -> None:
    with pytest.raises(ValueError, match="encoder_dropout must be at least 0 and below 1"):
        Adding(WIDTHS, encoder_dropout=value)


def test_one_further_encoder_at_the_least() -> None:
    with pytest.raises(ValueError, match="one further encoder at the least"):
        Adding(WIDTHS._replace(extra=()))


def test_one_without_parameters_leaves_dtypes_alone() -> None:
    mixer = Mixer(WIDTHS)
    assert mixer.own(torch.zeros(2, dtype=torch.float16)).dtype == torch.float16
    with pytest.raises(NotImplementedError):
        mixer(torch.zeros(1, CELLS[0] * CELLS[1], 6), sight(mixer)[1])
