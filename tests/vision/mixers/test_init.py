"""Mixers by name, and what all of them promise: identity, encoders left out, dtypes, and being built anew."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from mixer_loops import WIDTHS, sight, weighty
from mllm_align.vision.mixers import MIXERS, Mixer, make_mixer

BUILDS: list[tuple[str, dict[str, Any]]] = [
    ("additive", {}),
    ("additive", {"share": [0.5, 0.2], "learned": True, "norm": ["layer", "none", "l2"]}),
    ("interleave", {}),
    ("concat", {}),
    ("concat", {"init": "random", "norm": "layer"}),
    ("gated", {}),
    ("gated", {"per_channel": True, "norm": "layer"}),
    ("window", {"window": [2, 1], "heads": 2}),
    ("sva", {"windows": 2, "width": 4, "heads": 2, "depth": 1, "groups": 2}),
    ("sva", {"width": 4, "heads": 1, "depth": 2, "residual": True}),
]
STARTING = [("concat", {}), ("gated", {}), ("gated", {"per_channel": True, "norm": "layer"}), BUILDS[7], BUILDS[9]]


def made(kind: str, options: dict[str, Any], **more: Any) -> Mixer:
    torch.manual_seed(0)
    return make_mixer(kind, WIDTHS, {**options, **more})


def test_those_that_say_so_start_as_identity() -> None:
    assert [build for build in BUILDS if made(*build).starts_as_identity] == STARTING


def test_only_interleaving_makes_more_tokens() -> None:
    assert {kind for kind, options in BUILDS if not made(kind, options).keeps_tokens} == {"interleave"}
    for kind, options in BUILDS:
        mixer = made(kind, options)
        assert mixer(*sight(mixer, dtype=torch.float32)).shape[1] == mixer.num_tokens((2, 3))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "options"), STARTING)
def test_a_new_one_changes_no_bit(kind: str, options: dict[str, Any], dtype: torch.dtype, training: bool) -> None:
    """Whatever its own dtype: in that of the model, and in float32 beside a model in bfloat16."""
    for own in {dtype, torch.float32}:
        mixer = made(kind, options, encoder_dropout=0.3).to(own).train(training)
        x, seen = sight(mixer, dtype=dtype)
        out = mixer(x * 1000, seen)
        assert out.dtype == dtype
        assert torch.equal(out, x * 1000)


@pytest.mark.parametrize(("kind", "options"), BUILDS)
def test_options_and_widths_build_it_anew(kind: str, options: dict[str, Any]) -> None:
    mixer = weighty(made(kind, options, encoder_dropout=0.1))
    assert mixer.options["encoder_dropout"] == 0.1
    again = make_mixer(kind, mixer.widths, json.loads(json.dumps(mixer.options))).double().eval()
    shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (mixer, again)]
    assert shapes[0] == shapes[1]
    assert again.options == mixer.options
    again.load_state_dict(mixer.state_dict())
    x, seen = sight(mixer)
    with torch.no_grad():
        assert torch.equal(mixer(x, seen), again(x, seen))


@pytest.mark.parametrize(("kind", "options"), BUILDS)
def test_views_do_not_mix(kind: str, options: dict[str, Any]) -> None:
    mixer = weighty(made(kind, options))
    x, seen = sight(mixer, views=3)
    with torch.no_grad():
        together = mixer(x, seen)
        for view in range(3):
            alone = seen._replace(
                base=seen.base._replace(values=seen.base.values[view : view + 1]),
                extra=tuple(each and each._replace(values=each.values[view : view + 1]) for each in seen.extra),
            )
            torch.testing.assert_close(mixer(x[view : view + 1], alone)[0], together[view])


@pytest.mark.parametrize(("kind", "options"), BUILDS)
def test_dropout_is_as_switched_off_and_every_parameter_has_a_gradient(kind: str, options: dict[str, Any]) -> None:
    mixer = weighty(made(kind, options, encoder_dropout=0.5))
    x, seen = sight(mixer)
    offs = {(1.0, 1.0): (), (0.0, 1.0): (0,), (1.0, 0.0): (1,), (0.0, 0.0): (0, 1)}
    with torch.no_grad():
        wanted = {pair: mixer(*sight(mixer, off=off)) for pair, off in offs.items()}
    mixer.train()
    drawn = set()
    for seed in range(16):
        torch.manual_seed(seed)
        pair = tuple((torch.rand(2) >= 0.5).double().tolist())
        drawn.add(pair)
        torch.manual_seed(seed)
        mixer.zero_grad()
        out = mixer(x, seen)
        torch.testing.assert_close(out, wanted[pair], rtol=1e-10, atol=1e-10)
        out.square().sum().backward()
        assert all(each.grad is not None and each.grad.isfinite().all() for each in mixer.parameters())
    assert drawn == set(offs)


@pytest.mark.parametrize(("kind", "options"), BUILDS)
def test_watching_changes_nothing_and_writes_plain_numbers(kind: str, options: dict[str, Any]) -> None:
    mixer = weighty(made(kind, options))
    x, seen = sight(mixer)
    plain = mixer(x, seen)
    mixer.watched = {}
    assert torch.equal(mixer(x, seen), plain)
    assert mixer.watched
    assert all(each.dim() == 0 and not each.requires_grad and each >= 0 for each in mixer.watched.values())


@pytest.mark.parametrize(("kind", "options"), BUILDS)
def test_half_precision_stays_outside(kind: str, options: dict[str, Any]) -> None:
    mixer = weighty(made(kind, options))
    with torch.no_grad():
        exact = mixer(*sight(mixer))
        found = mixer.float()(*sight(mixer, dtype=torch.bfloat16))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=0.1, atol=0.1 * float(exact.abs().max()))


@pytest.mark.parametrize("kind", [kind for kind in MIXERS if kind != "x_former"])
def test_every_kind_is_tested_here(kind: str) -> None:
    assert kind in {build for build, _ in BUILDS}
    assert MIXERS[kind].place in ("input", "linear", "output")


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="no mixer 'gate'; did you mean 'gated'"):
        make_mixer("gate", WIDTHS)
    with pytest.raises(ValueError, match="mixer 'sva' has no option 'window'; did you mean 'windows'"):
        make_mixer("sva", WIDTHS, {"window": 2})
    with pytest.raises(ValueError, match=r"mixer 'interleave' has no option 'widths' \(encoder_dropout\)"):
        make_mixer("interleave", WIDTHS, {"widths": 3})
