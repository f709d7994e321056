"""Random batches through the engine and through plain calls of the real model: no layout and no setting may differ."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, seed, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor

from layouts import (
    CORNERS,
    VIEWS,
    Layout,
    assert_same_signals,
    batch_of,
    layouts,
    loaded_attention,
    options,
    plain_signals,
    variant,
)
from mllm_align.contract import Batch, Feature, Signals, View
from mllm_align.families import family_of, unwrap
from mllm_align.signals import AdaptersOff, EngineOptions, FrozenCopy, NamedAdapter, Replay, measure
from tiny import FAMILIES, tiny

TOLERANCE = 1e-4
VARIANTS = (
    *FAMILIES,
    "mistral3+window",
    "pixtral+window+eager",
    "internvl+window",
    "llava_onevision+window+eager",
    "qwen2_5_vl+window",
    "qwen2_vl+eager",
    "gemma3+eager",
)
FEATURES = (
    Feature("picture", "projector", "image"),
    Feature("words", "text", "chosen", pooling="mean"),
    Feature("end", "text", "rejected", pooling="last"),
)
TRAINED = ("language", "projector", "vision")
REFERENCES = ("off", "named", "copy")


def examples(count: int, number: int, corners: Any, **strategies: Any) -> Callable[[Any], Any]:
    """Every run draws the same, each variant its own."""

    def decorate(check: Any) -> Any:
        check = given(**strategies)(check)
        for corner in corners:
            check = example(**corner)(check)
        rules = settings(
            max_examples=count,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            phases=[Phase.explicit, Phase.generate],
        )
        return seed(number)(rules(check))

    return decorate


@functools.cache
def policy_of(name: str, trained: str) -> tuple[Any, Any]:
    """A PEFT model with two adapters, none of which is zero; the first is active.

    `trained` is "language"; "vision" (and all else); or "projector" (a copy of it, beside LoRA on the language model).
    """
    model, processor = variant(name)
    family = family_of(model)
    scopes = ("language", "projector", "vision") if trained == "vision" else ("language",)
    copied = [path.rsplit(".", 1)[-1] for path in family.projectors(model)[:1]] if trained == "projector" else None
    config = LoraConfig(r=4, target_modules=family.lora_targets(model, scopes), modules_to_save=copied)
    peft = get_peft_model(model, config)
    peft.add_adapter("other", config)
    generator = torch.Generator().manual_seed(3)
    for key, parameter in peft.named_parameters():
        if "lora_" in key or "modules_to_save" in key:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(noise * (0.1 if "lora_" in key else 0.02))
    return peft, processor


@functools.cache
def copy_of(name: str) -> Any:
    """A model of the same shape with other weights, those of its vision side included."""
    model, _ = variant(name)
    model.load_state_dict(tiny(name.split("+")[0], seed=1)[0].state_dict())
    return model


def plain_reference(
    name: str, peft: Any, kind: str, batch: Batch, prompts: list[dict[str, Tensor]], scored: Collection[View] = VIEWS
) -> Signals:
    """The rows that have a reference, by plain calls under it."""
    given = {"rows": batch.reference_rows, "scored": scored}
    if kind == "copy":
        with loaded_attention(copy_of(name)) as hf:
            return plain_signals(hf, batch, prompts, **given)
    with loaded_attention(peft) as hf:
        if kind == "off":
            with peft.disable_adapter():
                return plain_signals(hf, batch, prompts, **given)
        peft.set_adapter("other")
        try:
            return plain_signals(hf, batch, prompts, **given)
        finally:
            peft.set_adapter("default")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_branch_is_scored_as_a_plain_call_scores_it(name: str) -> None:
    fixed = [
        {
            "layout": layout,
            "shared": EngineOptions(logits_chunk_size=chunk, least_fill=0.0, max_tokens_per_forward=limit),
            "apart": EngineOptions(packing="off"),
            "trained": trained,
            "kind": kind,
            "scored": scored,
        }
        for layout, trained, kind, scored, chunk, limit in zip(
            CORNERS, TRAINED, REFERENCES, (VIEWS, VIEWS, VIEWS[:1]), (256, 4, 1), (None, None, 40), strict=True
        )
    ]

    @examples(
        6,
        VARIANTS.index(name),
        fixed,
        layout=layouts(),
        shared=options("auto"),
        apart=options("off"),
        trained=st.sampled_from(TRAINED),
        kind=st.sampled_from(REFERENCES),
        scored=st.one_of(st.just(VIEWS), st.sets(st.sampled_from(VIEWS))),
    )
    def check(
        layout: Layout, shared: EngineOptions, apart: EngineOptions, trained: str, kind: str, scored: Collection[View]
    ) -> None:
        peft, processor = policy_of(name, trained)
        batch, prompts = batch_of(unwrap(peft), processor, layout)
        reference = {"off": AdaptersOff(), "named": NamedAdapter("other"), "copy": FrozenCopy(copy_of(name))}[kind]
        with torch.no_grad():
            with loaded_attention(peft) as hf:
                plain = plain_signals(hf, batch, prompts, scored=scored, features=FEATURES)
            compared = plain_reference(name, peft, kind, batch, prompts, scored)
            for chosen in (shared, apart):
                wanted = {"reference": reference, "tokens": True, "features": FEATURES, "scored": scored}
                policy, other = measure(peft, batch, options=chosen, **wanted)
                assert_same_signals(policy, plain, TOLERANCE)
                assert_same_signals(other, compared, TOLERANCE)
        for view, counts in compared.num_tokens.items():
            apart_by = (plain.logps[view] - compared.logps[view])[counts > 0].abs()
            assert (apart_by > 10 * TOLERANCE).all(), "policy and reference are too much alike to tell them apart"

    check()


def coupled(policy: Signals, reference: Signals, weights: Tensor) -> Tensor:
    """0-d: a function of every signal in which each row's gradient depends on all others."""
    number = iter(weights.tolist())
    total = torch.zeros(())
    for view, values in policy.logps.items():
        ratios = values - reference.logps[view].detach()
        total = total + ((ratios / 20).tanh() * next(number)).sum()
        total = total + (policy.token_logps[view].values / 4).exp().sum() * next(number)
    for name in sorted(policy.features):
        ragged = policy.features[name]
        total = total + (ragged.values / 3).sin().sum(1).square().mean() * next(number)
    return total + (total / 10).cos()


def gradients(model: Any) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def engine_gradients(peft: Any, batch: Batch, weights: Tensor, replayed: bool, chosen: EngineOptions) -> Any:
    wanted = {"reference": AdaptersOff(), "tokens": True, "features": FEATURES, "options": chosen}
    if not replayed:
        policy, reference = measure(peft, batch, **wanted)
        loss = coupled(policy, reference, weights)
        loss.backward()
        return loss, gradients(peft)
    replay = Replay(peft, batch, **wanted)
    loss = coupled(replay.policy, replay.reference, weights)
    loss.backward()
    for again in replay.passes():
        again().backward()
    return loss, gradients(peft)


@pytest.mark.parametrize(
    "name",
    ["llava_onevision+window+eager", "qwen3_vl", "idefics3", "mistral3+window", "paligemma2", "gemma3"],
)
def test_gradients_are_those_of_plain_calls(name: str) -> None:
    fixed = [
        {
            "layout": layout,
            "trained": trained,
            "checkpointing": checkpointing,
            "chosen": EngineOptions(max_tokens_per_forward=1, max_images_per_forward=1, logits_chunk_size=3),
        }
        for layout, trained, checkpointing in (
            (CORNERS[0], "language", True),
            (CORNERS[1], "projector", True),
            (CORNERS[1], "vision", False),
        )
    ]

    @examples(
        2,
        VARIANTS.index(name),
        fixed,
        layout=layouts(most_rows=3, most_views=3),
        trained=st.sampled_from(TRAINED),
        checkpointing=st.booleans(),
        chosen=options("auto"),
    )
    def check(layout: Layout, trained: str, checkpointing: bool, chosen: EngineOptions) -> None:
        peft, processor = policy_of(name, trained)
        hf = unwrap(peft)
        batch, prompts = batch_of(hf, processor, layout)
        weights = torch.rand(32, generator=torch.Generator().manual_seed(9)) + 0.5
        with torch.no_grad():
            reference = plain_reference(name, peft, "off", batch, prompts)
        with loaded_attention(peft):
            loss = coupled(plain_signals(hf, batch, prompts, features=FEATURES), reference, weights)
        loss.backward()
        expected = gradients(peft)
        peft.train()
        if checkpointing:
            hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        try:
            ways = [engine_gradients(peft, batch, weights, replayed, chosen) for replayed in (False, True)]
        finally:
            hf.gradient_checkpointing_disable()
            peft.eval()
        for ours, found in ways:
            assert ours.item() == pytest.approx(loss.item(), abs=1e-3)
            assert found.keys() == expected.keys()
            largest = max(gradient.abs().max() for gradient in expected.values())
            for key, gradient in expected.items():
                scale = max(gradient.abs().max(), 1e-2 * largest)
                torch.testing.assert_close(found[key] / scale, gradient / scale, atol=1e-3, rtol=0, msg=key)

    check()
