"""What policy and reference share of the vision side, and what is left behind of a tower that ran once."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from batches import make_batch
from mllm_align.contract import Batch, Signals
from mllm_align.families import family_of
from mllm_align.signals import AdaptersOff, FrozenCopy, Replay, measure
from mllm_align.signals.vision import frozen_tower_once, trained_image_parameters
from tiny import tiny

LAYOUTS = [((0,), (3, 5)), ((1,), (4,))]


def with_trained_newline(pictures: list[Any]) -> tuple[Any, Batch]:
    """LLaVA-NeXT of which the newline between rows of patches trains, and no module of the vision side."""
    model, processor = tiny("llava_next")
    model.requires_grad_(False)
    model.model.image_newline.requires_grad_(True)
    return model, make_batch(model, processor, pictures[:2], LAYOUTS)


def loss_of(policy: Signals, reference: Signals | None) -> torch.Tensor:
    assert reference is not None
    return sum(((value - reference.logps[view]) / 10).sin().sum() for view, value in policy.logps.items())


def test_a_reference_does_not_move_with_a_newline_that_trains(pictures: list[Any]) -> None:
    model, batch = with_trained_newline(pictures)
    assert trained_image_parameters(family_of(model), model) == ["model.image_newline"]
    reference = FrozenCopy(copy.deepcopy(model).requires_grad_(False))
    with torch.no_grad():
        _, before = measure(model, batch, reference=reference)
        own, _ = measure(model, batch)
        model.model.image_newline.add_(1.0)
        moved, after = measure(model, batch, reference=reference)
    assert before is not None
    assert after is not None
    for view, value in before.logps.items():
        torch.testing.assert_close(after.logps[view], value, atol=1e-5, rtol=0)
    assert any((moved.logps[view] - own.logps[view]).abs().max() > 1e-2 for view in batch.views)


def test_cached_gradients_reach_a_newline_that_trains(pictures: list[Any]) -> None:
    model, batch = with_trained_newline(pictures)
    reference = FrozenCopy(copy.deepcopy(tiny("llava_next", seed=1)[0]).requires_grad_(False))
    loss_of(*measure(model, batch, reference=reference)).backward()
    expected = model.model.image_newline.grad.clone()
    model.zero_grad()
    replay = Replay(model, batch, reference=reference)
    loss_of(replay.policy, replay.reference).backward()
    for again in replay.passes():
        again().backward()
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(model.model.image_newline.grad, expected, atol=1e-5, rtol=1e-3)


def test_a_copy_with_a_newline_of_its_own_sees_with_it(pictures: list[Any]) -> None:
    model, batch = with_trained_newline(pictures)
    model.requires_grad_(False)
    other = copy.deepcopy(model)
    other.model.image_newline.add_(1.0)
    with torch.no_grad():
        _, found = measure(model, batch, reference=FrozenCopy(other))
        expected, _ = measure(other, batch)
    assert found is not None
    for view, value in expected.logps.items():
        torch.testing.assert_close(found.logps[view], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("hooked", [False, True])
def test_the_tower_is_left_as_it_was(hooked: bool) -> None:
    """Accelerate puts a forward of its own on parts of a model that is spread over devices."""
    model, _ = tiny("llava")
    model.requires_grad_(False)
    tower: Any = family_of(model).module(model, family_of(model).tower)
    if hooked:
        plain = tower.forward
        tower.forward = lambda *args, **kwargs: plain(*args, **kwargs)
    own = tower.__dict__.get("forward")
    with frozen_tower_once(family_of(model), model):
        assert tower.__dict__["forward"] is not own
    assert tower.__dict__.get("forward") is own


def test_the_towers_outputs_are_gone_when_the_policy_is_scored(
    pictures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = tiny("llava")
    targets = family_of(model).lora_targets(model, ["language", "projector"])
    policy = get_peft_model(model, LoraConfig(r=2, target_modules=targets))
    batch = make_batch(policy, processor, pictures[:2], LAYOUTS)
    outputs, alive = [], []
    encoder: Any = model.get_submodule(family_of(model).tower)
    plain = type(encoder).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = plain(self, *args, **kwargs)
        outputs.append(weakref.ref(found.last_hidden_state))
        return found

    def score(*args: Any) -> Any:
        alive.append(sum(output() is not None for output in outputs))
        return kept(*args)

    kept = measure.__globals__["score_kept"]
    monkeypatch.setattr(type(encoder), "forward", forward)
    monkeypatch.setitem(measure.__globals__, "score_kept", score)
    measure(policy, batch, reference=AdaptersOff())
    assert len(outputs) == 1
    assert set(alive) == {0}
