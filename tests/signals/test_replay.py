"""Gradient caching: the gradients of one big graph, from passes that never hold more than one group of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from batches import make_batch
from mllm_align.contract import Feature, Signals, View
from mllm_align.families import family_of
from mllm_align.signals import AdaptersOff, EngineOptions, Replay, measure
from tiny import FAMILIES, tiny

LAYOUTS = [((0,), (3, 6, 1)), ((1,), (5, 2)), ((2, 0), (4, 4)), ((), (7, 3))]
FEATURES = (
    Feature("picture", "projector", "image"),
    Feature("words", "text", "0", pooling="mean"),
    Feature("end", "text", "1", pooling="last"),
)


def policy_of(family: str, dropout: float = 0.0) -> tuple[Any, Any]:
    """LoRA on every part, with an update that is not zero."""
    model, processor = tiny(family)
    targets = family_of(model).lora_targets(model, ["language", "projector", "vision"])
    peft = get_peft_model(model, LoraConfig(r=4, target_modules=targets, lora_dropout=dropout)).train()
    generator = torch.Generator().manual_seed(3)
    for parameter in peft.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return peft, processor


def batch_for(model: Any, processor: Any, pictures: list[Any]) -> Any:
    import dataclasses

    batch = make_batch(model, processor, pictures[:3], LAYOUTS)
    branches = tuple(
        b._replace(view=View(None, b.view.response)) if not batch.prefixes[b.prefix].images else b
        for b in batch.branches
    )
    return dataclasses.replace(batch, branches=branches, row_images={"image": ((0, 2), (1,))})


def loss_of(policy: Signals, reference: Signals | None) -> torch.Tensor:
    """Couples every row and view with every other, as a contrastive loss does."""
    parts = [value - reference.logps[view] if reference else value for view, value in policy.logps.items()]
    total = torch.stack(parts).sum()
    loss = (total / 50).tanh() + sum((number + 1.5) * (part / 10).tanh().sum() for number, part in enumerate(parts))
    for ragged in policy.token_logps.values():
        loss = loss + ragged.values.exp().sum()
    for number, ragged in enumerate(policy.features.values()):
        loss = loss + (number + 1) * (ragged.values.sum() / 10 + total / 30).sin() + ragged.values.tanh().mean()
    return loss


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_one_graph(family: str, pictures: list[Any]) -> None:
    model, processor = policy_of(family)
    batch = batch_for(model, processor, pictures)
    small = EngineOptions(max_tokens_per_forward=1, max_images_per_forward=2)
    wanted = {"reference": AdaptersOff(), "tokens": True, "features": FEATURES}
    policy, reference = measure(model, batch, **wanted)
    loss = loss_of(policy, reference)
    loss.backward()
    expected = gradients(model)
    replay = Replay(model, batch, options=small, **wanted)
    assert replay.policy.host_token_ids == policy.host_token_ids
    assert replay.reference.host_token_ids == reference.host_token_ids
    again = loss_of(replay.policy, replay.reference)
    assert again.item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-5)
    again.backward()
    assert not gradients(model)
    for step in replay.passes():
        step().backward()
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max()
        torch.testing.assert_close(found[name] / scale, gradient / scale, atol=1e-3, rtol=0, msg=name)


def test_dropout_draws_the_same_in_both_passes(pictures: list[Any]) -> None:
    model, processor = policy_of("llava", dropout=0.3)
    batch = batch_for(model, processor, pictures)
    options = EngineOptions(max_tokens_per_forward=1, max_images_per_forward=1)
    torch.manual_seed(5)
    replay = Replay(model, batch, options=options)
    after = torch.get_rng_state()
    loss_of(replay.policy, None).backward()
    leaves = [each.logps for each in replay.measured]
    for number, (leaf, group) in enumerate(zip(leaves, replay.groups, strict=True)):
        again = replay._group_again(number, group)
        assert again.item() == pytest.approx((leaf * leaf.grad).sum().item(), rel=1e-5, abs=1e-6)
    assert torch.equal(torch.get_rng_state(), after)
    torch.manual_seed(6)
    other = Replay(model, batch, options=options)
    assert not torch.allclose(other.measured[0].logps, leaves[0], atol=1e-3)


def test_only_one_group_is_ever_in_memory(pictures: list[Any]) -> None:
    model, processor = policy_of("llava")
    batch = batch_for(model, processor, pictures)

    def size(work: Any) -> int:
        alive: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: alive.append(t.numel()) or t, lambda t: t):
            work()
        return sum(alive)

    whole = size(lambda: measure(model, batch))
    replay = Replay(model, batch, options=EngineOptions(max_tokens_per_forward=1, max_images_per_forward=1))
    assert not any(tensor.requires_grad and tensor.grad_fn for each in replay.measured for tensor in each.tensors)
    loss_of(replay.policy, None).backward()
    sizes = []
    for step in replay.passes():
        out: list[torch.Tensor] = []
        sizes.append(size(lambda step=step, out=out: out.append(step())))
        out[0].backward()
    assert len(sizes) == len(replay.groups) + 3
    assert max(sizes) < whole / 2


def test_groups_that_no_gradient_reaches_are_not_run_again(pictures: list[Any]) -> None:
    model, processor = policy_of("llava")
    batch = batch_for(model, processor, pictures)
    options = EngineOptions(max_tokens_per_forward=1, max_images_per_forward=1)
    replay = Replay(model, batch, options=options, features=FEATURES[:1])
    replay.policy.features["picture"].values[0].sum().backward()
    kinds = []
    for step in replay.passes():
        kinds.append("images" if "part" in step.__code__.co_varnames else "group")
        step().backward()
    assert kinds == ["images"] * 3


def test_sequences_without_an_image_can_be_run_again_instead_of_kept(pictures: list[Any]) -> None:
    model, processor = policy_of("llava")
    batch = batch_for(model, processor, pictures)
    found, kept = [], []
    for options in (EngineOptions(), EngineOptions(recompute_without_image=True)):
        torch.manual_seed(9)
        alive: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, alive=alive: alive.append(t.numel()) or t, lambda t: t
        ):
            policy, _ = measure(model, batch, features=FEATURES, tokens=True, options=options)
        kept.append(sum(alive))
        loss_of(policy, None).backward()
        found.append(gradients(model))
    assert kept[1] < kept[0]
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4, msg=name)
