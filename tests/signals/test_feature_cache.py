"""Image tokens from disk: the same numbers, without the tower."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from batches import make_batch
from mllm_align.contract import Batch
from mllm_align.data.tensor_files import TensorFiles
from mllm_align.families import EncodedImages, family_of
from mllm_align.signals import AdaptersOff, EngineOptions, measure
from mllm_align.signals.feature_cache import FeatureCache, check_frozen_vision
from tiny import FAMILIES, tiny

LAYOUTS = [((0,), (3, 6)), ((1,), (5, 2)), ((2, 0), (4,)), ((), (7,))]


def cache_in(folder: Path) -> FeatureCache:
    return FeatureCache(TensorFiles(folder, {}))


def batch_of(model: Any, processor: Any, pictures: list[Any], layouts: Any = LAYOUTS, first: int = 0) -> Batch:
    batch = make_batch(model, processor, pictures, layouts)
    return replace(batch, image_ids=tuple(f"{first + number:032x}" for number in range(len(pictures))))


def count_images(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the number of images of each vision pass."""
    family, calls = family_of(model), []
    encode = type(family).encode_images

    def counted(self: Any, model: Any, images: Any) -> EncodedImages:
        calls.append(len(images))
        return encode(self, model, images)

    monkeypatch.setattr(type(family), "encode_images", counted)
    return calls


@pytest.mark.parametrize("family", FAMILIES)
def test_the_second_time_no_tower_runs_and_nothing_changes(
    family: str, tmp_path: Path, pictures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = tiny(family)
    batch = batch_of(model, processor, pictures[:3])
    calls = count_images(model, monkeypatch)
    options = EngineOptions(feature_cache=cache_in(tmp_path))
    with torch.no_grad():
        plain, _ = measure(model, batch)
        first, _ = measure(model, batch, options=options)
        assert calls == [3, 3]
        tower = family_of(model).module(model, family_of(model).tower)
        monkeypatch.setattr(tower, "forward", lambda *_, **__: pytest.fail("the tower was called"))
        second, _ = measure(model, batch, options=EngineOptions(feature_cache=cache_in(tmp_path)))
    assert calls == [3, 3]
    for view in batch.views:
        torch.testing.assert_close(first.logps[view], plain.logps[view], atol=1e-5, rtol=0)
        assert torch.equal(second.logps[view], first.logps[view])


def test_tokens_come_back_bit_for_bit_in_their_own_type(tmp_path: Path, pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    model = model.bfloat16()
    batch = batch_of(model, processor, pictures[:3])
    family = family_of(model)
    first = cache_in(tmp_path).encode(family, model, batch)
    second = cache_in(tmp_path).encode(family, model, batch)
    plain = family.encode_images(model, batch.images)
    for tokens in (first.tokens, second.tokens):
        for ours, theirs in zip(tokens, plain.tokens, strict=True):
            assert ours.dtype == torch.bfloat16
            assert torch.equal(ours, theirs)
    assert first.deepstack == second.deepstack == ()


def test_what_the_decoder_adds_in_its_first_layers_is_kept_too(tmp_path: Path) -> None:
    model, processor = tiny("llava")
    made = EncodedImages(
        tuple(torch.randn(size, 4) for size in (3, 2)),
        tuple(tuple(torch.randn(size, 4) for _ in range(2)) for size in (3, 2)),
    )

    class Deep:
        def encode_images(self, model: Any, images: Any) -> EncodedImages:
            return made

    images = ({"pixel_values": torch.zeros(1)},) * 2
    batch = replace(batch_of(model, processor, [], [((), (1,))]), images=images, image_ids=("aa", "bb"))
    cache_in(tmp_path).encode(Deep(), model, batch)
    found = cache_in(tmp_path).encode(None, model, batch)
    assert [len(layers) for layers in found.deepstack] == [2, 2]
    for ours, theirs in zip(found.tensors, made.tensors, strict=True):
        assert torch.equal(ours, theirs)


def test_only_images_that_miss_are_encoded_in_one_call(
    tmp_path: Path, pictures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = tiny("qwen2_5_vl")
    calls = count_images(model, monkeypatch)
    options = EngineOptions(feature_cache=cache_in(tmp_path))
    with torch.no_grad():
        measure(model, batch_of(model, processor, pictures[1:2], [((0,), (3,))], first=1), options=options)
        batch = batch_of(model, processor, pictures[:3])
        mixed, _ = measure(model, batch, options=options)
        assert calls == [1, 2]
        plain, _ = measure(model, batch)
        text = batch_of(model, processor, [], [((), (3,))])
        measure(model, text, options=options)
    assert calls == [1, 2, 3]
    for view in batch.views:
        torch.testing.assert_close(mixed.logps[view], plain.logps[view], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="image_ids"):
        measure(model, replace(batch, image_ids=()), options=options)


def test_gradients_and_the_live_reference_are_as_without(tmp_path: Path, pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    targets = family_of(model).lora_targets(model, ["language"])
    peft = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    batch = batch_of(model, processor, pictures[:3])
    found = []
    for options in (EngineOptions(), *[EngineOptions(feature_cache=cache_in(tmp_path))] * 2):
        peft.zero_grad()
        policy, reference = measure(peft, batch, reference=AdaptersOff(), options=options)
        sum(value.sum() for value in policy.logps.values()).backward()
        gradients = {name: p.grad.clone() for name, p in peft.named_parameters() if p.grad is not None}
        found.append((gradients, reference))
    assert found[0][0]
    for gradients, reference in found[1:]:
        for name, gradient in found[0][0].items():
            torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-4)
        for view, logps in found[0][1].logps.items():
            torch.testing.assert_close(reference.logps[view], logps, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scope", ["projector", "vision"])
def test_vision_that_trains_is_refused(scope: str) -> None:
    model, _ = tiny("llava")
    family = family_of(model)
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=family.lora_targets(model, ["language", scope])))
    with pytest.raises(ValueError, match=r"cache_image_features .* trains.*freeze both"):
        check_frozen_vision(peft)
    peft.requires_grad_(False)
    with pytest.raises(ValueError, match="an adapter lies in"):
        check_frozen_vision(peft)


def test_loose_vision_parameters_count_and_the_head_does_not() -> None:
    model, _ = tiny("llava_next")
    family = family_of(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(family.scope_of(name) == "language" or name == "lm_head.weight")
    check_frozen_vision(model)
    model.model.image_newline.requires_grad_(True)
    with pytest.raises(ValueError, match=r"model\.image_newline trains"):
        check_frozen_vision(model)
