"""All tokens of images and of texts as features: those of plain calls, as many as were announced, replayed too."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

from batches import prompt_inputs
from mllm_align.contract import Feature, Needs
from mllm_align.data.collator import AlignCollator
from mllm_align.families import family_of
from mllm_align.signals import EngineOptions, Replay, measure
from mllm_align.trainers.window import zero_signals
from tiny import FAMILIES, tiny

NEEDS = Needs(
    features=(
        Feature("image", "projector", "image", None, "tokens"),
        Feature("text", "text", "chosen", None, "tokens"),
    )
)
QUESTIONS, ANSWERS = (
    ("What is it?", "How many?", "What colour is it?"),
    ("A red disc.", "No.", "Blue and green, not two."),
)


def collated(model: Any, processor: Any, pictures: list[Any]) -> Any:
    family = family_of(model)
    rows = [
        {"images": own, "prompt": question, "chosen": answer}
        for own, question, answer in zip(
            ([pictures[0]], [], [pictures[2], pictures[0]]), QUESTIONS, ANSWERS, strict=True
        )
    ]
    batch = AlignCollator(processor, lambda _: NEEDS, family.image_keys, family.token_keys)(rows)["batch"]
    # One response has been cut to a single token, which is predicted and never read.
    cut = [b._replace(token_ids=b.token_ids[:1]) if b.row == 1 else b for b in batch.branches]
    return dataclasses.replace(batch, branches=tuple(cut))


@pytest.mark.parametrize("name", FAMILIES)
def test_they_are_those_of_plain_calls(name: str, pictures: list[Any]) -> None:
    model, processor = tiny(name)
    family = family_of(model)
    batch = collated(model, processor, pictures)
    with torch.no_grad():
        signals, _ = measure(model, batch, features=NEEDS.features, scored=())
        encoded = family.encode_images(model, batch.images)
    assert batch.image_sizes == tuple(len(tokens) for tokens in encoded.tokens)
    # LLaVA-OneVision reads an image among several differently, so that there may be three distinct ones.
    (first,), (), (second, third) = batch.row_images["image"]
    own = [encoded.tokens[first], encoded.tokens[second], encoded.tokens[third]]
    image = signals.features["image"]
    torch.testing.assert_close(image.values, torch.cat(own), atol=1e-6, rtol=0)
    assert image.row.tolist() == [0] * len(own[0]) + [2] * (len(own[1]) + len(own[2]))
    states, rows = [], []
    for branch in batch.branches:
        inputs = prompt_inputs(processor, QUESTIONS[branch.row], [])
        ids = branch.token_ids[None, :-1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        for key in family.token_keys:
            inputs[key] = torch.nn.functional.pad(
                inputs[key], (0, ids.numel()), value=family.response_values.get(key, 0)
            )
        count = max(ids.numel(), 1)  # of a single token, the state that predicts it
        with torch.no_grad():
            states.append(model.model(**inputs).last_hidden_state[0, -count:])
        rows += [branch.row] * count
    text = signals.features["text"]
    torch.testing.assert_close(text.values, torch.cat(states), atol=1e-4, rtol=0)
    assert text.row.tolist() == rows
    zeros = zero_signals(batch, features=NEEDS.features, width=2)
    for each in NEEDS.features:
        assert zeros.features[each.name].row.tolist() == signals.features[each.name].row.tolist()
        assert list(signals.host_feature_rows[each.name]) == signals.features[each.name].row.tolist()
    last = signals.select([2]).features
    assert len(last["image"].values) == len(own[1]) + len(own[2])
    torch.testing.assert_close(last["text"].values, text.values[text.row == 2])


def test_replayed_gradients_are_the_same(pictures: list[Any]) -> None:
    model, processor = tiny("llava_next")
    batch = collated(model, processor, pictures)
    grads = []
    for replayed in (False, True):
        own = copy.deepcopy(model).requires_grad_(True)
        if replayed:
            options = EngineOptions(max_images_per_forward=1, max_tokens_per_forward=1)
            replay = Replay(own, batch, features=NEEDS.features, scored=(), options=options)
            sum(each.values.square().sum() for each in replay.policy.features.values()).backward()
            for again in replay.passes():
                again().backward()
        else:
            signals, _ = measure(own, batch, features=NEEDS.features, scored=())
            sum(each.values.square().sum() for each in signals.features.values()).backward()
        grads.append({name: p.grad for name, p in own.named_parameters() if p.grad is not None and p.grad.any()})
    assert grads[0].keys() == grads[1].keys()
    assert any(".vision_tower." in name for name in grads[0])
    for name, gradient in grads[0].items():
        torch.testing.assert_close(grads[1][name], gradient, atol=1e-3, rtol=1e-3, msg=name)


def test_a_batch_that_does_not_count_its_tokens(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    batch = dataclasses.replace(collated(model, processor, pictures), image_sizes=())
    with pytest.raises(ValueError, match="image_sizes"):
        measure(model, batch, features=NEEDS.features)
