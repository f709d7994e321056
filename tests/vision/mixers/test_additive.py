"""A-MoF against its formula in loops: shares, norms, several encoders, and those switched off."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mixer_loops import WIDTHS, gradients_check, layer_norm, linear, norm, plus, sight, times, weighty
from mllm_align.vision.mixers import Sight, Widths, make_mixer
from mllm_align.vision.mixers.additive import AdditiveMoF

ALIKE = Widths(base=5, place=5, language=7, extra=(5,))


def expected(mixer: AdditiveMoF, x: Tensor, seen: Sight, shares: list[float], kinds: list[str]) -> Tensor:
    """F = (1 - what is given away) * base + sum over encoders of share * extra, patch by patch."""

    def normed(number: int, values: list[float]) -> list[float]:
        part: Any = mixer.norms[number]
        if kinds[number] == "layer":
            return layer_norm(part, values)
        return times(part.scale.item() / norm(values), values) if kinds[number] == "l2" else values

    views = []
    for view in range(len(x)):
        tokens = []
        for patch in range(x.shape[1]):
            own = normed(0, x[view, patch].tolist())
            left, added = 1.0, [0.0] * len(own)
            for k, each in enumerate(seen.extra):
                if each is None:
                    continue
                vector = each.values[view, patch].tolist()
                if len(vector) != len(own):
                    vector = linear(mixer.maps[k], vector)
                added = plus(added, times(shares[k], normed(1 + k, vector)))
                left -= shares[k]
            tokens.append(plus(times(left, own), added))
        views.append(tokens)
    return torch.tensor(views, dtype=torch.float64)


@pytest.mark.parametrize("off", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("kinds", [["none"] * 3, ["layer"] * 3, ["l2"] * 3, ["none", "l2", "layer"]])
def test_it_is_what_its_formula_says(kinds: list[str], off: tuple[int, ...]) -> None:
    mixer = weighty(AdditiveMoF(WIDTHS, share=[0.5, 0.2], norm=kinds))
    x, seen = sight(mixer, off=off)
    with torch.no_grad():
        found = mixer(x, seen)
    torch.testing.assert_close(found, expected(mixer, x, seen, [0.5, 0.2], kinds), rtol=1e-9, atol=1e-9)


def test_one_share_is_what_all_have_together() -> None:
    mixer = weighty(AdditiveMoF(WIDTHS, share=0.75))
    x, seen = sight(mixer)
    with torch.no_grad():
        found = mixer(x, seen)
    torch.testing.assert_close(found, expected(mixer, x, seen, [0.375, 0.375], ["none"] * 3))


def test_equally_wide_encoders_are_added_as_they_are() -> None:
    mixer = AdditiveMoF(ALIKE, share=0.25)
    assert not list(mixer.parameters())
    x, seen = sight(mixer)
    (extra,) = seen.extra
    assert extra is not None
    torch.testing.assert_close(mixer(x, seen), 0.75 * x + 0.25 * extra.values)


def test_a_share_of_nothing_and_of_all() -> None:
    mixer = AdditiveMoF(ALIKE, share=0)
    x, seen = sight(mixer)
    (extra,) = seen.extra
    assert extra is not None
    assert torch.equal(mixer(x, seen), x)
    assert torch.equal(AdditiveMoF(ALIKE, share=1)(x, seen), extra.values)


def test_a_learned_share_starts_where_it_is_told_and_is_a_sigmoid() -> None:
    mixer = AdditiveMoF(ALIKE, share=0.3, learned=True).double()
    x, seen = sight(mixer)
    (extra,) = seen.extra
    assert extra is not None
    assert mixer.logits is not None
    torch.testing.assert_close(mixer(x, seen), 0.7 * x + 0.3 * extra.values, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        mixer.logits.fill_(1.2)
    share = 1 / (1 + math.exp(-1.2))
    torch.testing.assert_close(mixer(x, seen), (1 - share) * x + share * extra.values)


def test_learned_shares_of_several_are_a_softmax_with_the_own_logit_at_zero() -> None:
    mixer = weighty(AdditiveMoF(WIDTHS, share=[0.5, 0.2], learned=True, norm="l2"))
    assert mixer.logits is not None
    powers = [math.exp(each) for each in mixer.logits.tolist()]
    shares = [each / (1 + sum(powers)) for each in powers]
    x, seen = sight(mixer)
    with torch.no_grad():
        found = mixer(x, seen)
    torch.testing.assert_close(found, expected(mixer, x, seen, shares, ["l2"] * 3), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["none", "layer", "l2"])
def test_gradients(kind: str) -> None:
    mixer = weighty(AdditiveMoF(WIDTHS, share=[0.5, 0.2], learned=True, norm=kind))
    assert gradients_check(mixer, *sight(mixer, cells=(1, 2), views=1))


def test_what_is_watched() -> None:
    mixer = weighty(AdditiveMoF(WIDTHS, share=[0.5, 0.2], norm=["none", "layer", "l2"]))
    mixer.watched = {}
    x, seen = sight(mixer)
    mixer(x, seen)
    patches = [vector for view in x.tolist() for vector in view]
    assert float(mixer.watched["norm/0"]) == pytest.approx(sum(map(norm, patches)) / len(patches))
    scale: Any = mixer.norms[2]
    assert float(mixer.watched["norm/2"]) == pytest.approx(abs(scale.scale.item()))
    assert float(mixer.watched["share/0"]) == pytest.approx(0.3)
    assert float(mixer.watched["share/1"]) == pytest.approx(0.5)
    assert float(mixer.watched["share/2"]) == pytest.approx(0.2)
    assert set(mixer.watched) == {f"{name}/{number}" for name in ("norm", "share") for number in range(3)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"share": 1.5}, "share must be a number from 0 to 1"),
        ({"share": True}, "share must be a number from 0 to 1"),
        ({"share": [0.7, 0.7]}, r"share adds up to 1\.4"),
        ({"share": [0.5]}, "share must be one value or a list of 2"),
        ({"share": 0, "learned": True}, "share must start above 0"),
        ({"share": 1.0, "learned": True}, "below 1 where it is learned"),
        ({"learned": "yes"}, "learned must be true or false"),
        ({"norm": "batch"}, "norm must be one of none, layer, l2"),
        ({"norm": ["none", "none"]}, "a list of 3, one per encoder"),
    ],
)
def test_what_cannot_be_built_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_mixer("additive", WIDTHS, options)
