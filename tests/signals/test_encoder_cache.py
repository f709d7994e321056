"""Features of frozen further encoders from disk: the same numbers, without the encoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from batches import make_batch
from mixed import mixed_tiny, shake
from mllm_align.contract import Batch
from mllm_align.data.tensor_files import TensorFiles
from mllm_align.families import family_of
from mllm_align.families.base import EXTRA_PIXELS
from mllm_align.signals import AdaptersOff, EngineOptions, measure
from mllm_align.signals.encoder_cache import EncoderCache, count_views
from mllm_align.signals.replay import Replay
from mllm_align.vision.attach import attach
from tiny import FAMILIES, tiny
from tiny_encoders import save_encoder

LAYOUTS = [((0,), (3, 6)), ((1,), (5, 2)), ((2, 0), (4,)), ((), (7,))]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder("dinov2", tmp_path_factory.mktemp("encoder"))


def cache_in(folder: Path, count: int = 1) -> EncoderCache:
    return EncoderCache({number: TensorFiles(folder / str(number), {}) for number in range(count)})


def batch_of(model: Any, processor: Any, pictures: list[Any], layouts: Any = LAYOUTS, first: int = 0) -> Batch:
    batch = make_batch(model, processor, pictures, layouts)
    return replace(batch, image_ids=tuple(f"{first + number:032x}" for number in range(len(pictures))))


def count_calls(encoder: Any) -> list[int]:
    """Grows by the number of views that an encoder is run on."""
    calls: list[int] = []
    encoder.model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    return calls


def kind_for(family: str) -> str:
    return "sva" if family in ("llava_next", "qwen2_5_vl") else "window"


@pytest.mark.parametrize("family", FAMILIES)
def test_no_view_is_looked_at_twice_and_nothing_changes(
    family: str, encoder: Path, tmp_path: Path, pictures: list[Any]
) -> None:
    model, processor, mixed = mixed_tiny(family, kind_for(family), encoder)
    shake(mixed)
    batch = batch_of(model, processor, pictures[:3])
    with torch.no_grad():
        plain, _ = measure(model, batch)
        calls = count_calls(mixed.seeing[0])
        first, _ = measure(model, batch, options=EngineOptions(encoder_cache=cache_in(tmp_path)))
        views = sum(count_views(family_of(model), model, image) for image in batch.images)
        assert sum(calls) == views >= 3
        second, _ = measure(model, batch, options=EngineOptions(encoder_cache=cache_in(tmp_path)))
        assert sum(calls) == views
        # In another order, and other images with them: what a view is known by is not where it stands.
        turned = [((1,), (3, 6)), ((0,), (5, 2))]
        other = batch_of(model, processor, [pictures[3], pictures[0]], turned)
        other = replace(other, image_ids=("f" * 32, batch.image_ids[0]))
        mixture, _ = measure(model, other, options=EngineOptions(encoder_cache=cache_in(tmp_path)))
        new = count_views(family_of(model), model, other.images[0])
        assert sum(calls) == views + new
        apart, _ = measure(model, other)
    for view in batch.views:
        assert torch.equal(first.logps[view], plain.logps[view])
        assert torch.equal(second.logps[view], plain.logps[view])
    for view in other.views:
        torch.testing.assert_close(mixture.logps[view], apart.logps[view], atol=1e-5, rtol=0)
    assert mixed.known is None


def test_several_encoders_each_its_own_and_one_that_is_not_kept(
    encoder: Path, tmp_path: Path, pictures: list[Any]
) -> None:
    model, processor = tiny("llava")
    other = save_encoder("siglip", tmp_path / "other")
    specs = [str(encoder), {"model": str(other), "pixels": "own"}, {"model": str(encoder), "layer": 1}]
    mixed = attach(model, {"kind": "interleave", "encoders": specs}, None, processor)
    batch = batch_of(model, processor, pictures[:3])
    made = [processor(text=[processor.image_token], images=[each], return_tensors="pt") for each in pictures[:3]]
    images = tuple({key: each[key] for key in ("pixel_values", EXTRA_PIXELS)} for each in made)
    batch = replace(batch, images=images)
    calls = [count_calls(each) for each in mixed.seeing]
    with torch.no_grad():
        plain, _ = measure(model, batch)
        for _ in range(2):
            found, _ = measure(model, batch, options=EngineOptions(encoder_cache=cache_in(tmp_path / "kept", 2)))
            for view in batch.views:
                assert torch.equal(found.logps[view], plain.logps[view])
    assert [sum(each) for each in calls] == [6, 6, 9]


def test_values_come_back_in_their_own_type(encoder: Path, tmp_path: Path, pictures: list[Any]) -> None:
    model, processor, mixed = mixed_tiny("llava", "concat", encoder)
    shake(mixed)
    model = model.bfloat16()
    batch, family = batch_of(model, processor, pictures[:3]), family_of(model)
    plain = family.encode_images(model, batch.images).tokens
    for _ in range(2):
        with cache_in(tmp_path).known(family, model, batch):
            found = family.encode_images(model, batch.images).tokens
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, plain, strict=True))


def test_gradients_of_mixer_and_projector_and_the_live_reference_are_as_without(
    encoder: Path, tmp_path: Path, pictures: list[Any]
) -> None:
    model, processor, mixed = mixed_tiny("llava", "gated", encoder)
    shake(mixed)
    targets = family_of(model).lora_targets(model, ["language", "projector", "vision"])
    saved = ["model.vision_mixer.mixer"]
    peft = get_peft_model(
        model, LoraConfig(r=4, target_modules=targets, modules_to_save=saved, init_lora_weights=False)
    )
    batch = batch_of(model, processor, pictures[:3])
    calls = count_calls(mixed.seeing[0])
    found = []
    for options in (EngineOptions(), *[EngineOptions(encoder_cache=cache_in(tmp_path))] * 2):
        peft.zero_grad()
        policy, reference = measure(peft, batch, reference=AdaptersOff(), options=options)
        sum(value.sum() for value in policy.logps.values()).backward()
        gradients = {name: p.grad.clone() for name, p in peft.named_parameters() if p.grad is not None}
        found.append((gradients, reference))
        # The reference sees what the policy saw.
        assert sum(calls) == (3 if not found[1:] else 6)
    assert any("vision_mixer" in name for name in found[0][0])
    for gradients, reference in found[1:]:
        assert gradients.keys() == found[0][0].keys()
        assert all(torch.equal(gradients[name], gradient) for name, gradient in found[0][0].items())
        assert all(torch.equal(reference.logps[view], logps) for view, logps in found[0][1].logps.items())


def test_cached_gradients_look_no_more_often(encoder: Path, tmp_path: Path, pictures: list[Any]) -> None:
    model, processor, mixed = mixed_tiny("llava", "gated", encoder)
    shake(mixed)
    model.requires_grad_(False)
    mixed.mixer.requires_grad_(True)
    batch = batch_of(model, processor, pictures[:3])
    calls, found = count_calls(mixed.seeing[0]), []
    for cache in (None, cache_in(tmp_path)):
        model.zero_grad()
        calls.clear()
        options = EngineOptions(encoder_cache=cache, max_images_per_forward=2)
        replay = Replay(model, batch, options=options)
        sum(value.sum() for value in replay.policy.logps.values()).backward()
        for again in replay.passes():
            again().backward()
        found.append({name: p.grad.clone() for name, p in mixed.mixer.named_parameters() if p.grad is not None})
        assert sum(calls) == (6 if cache is None else 3)
    assert found[0].keys() == found[1].keys() != set()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_a_disk_that_is_full_changes_nothing(encoder: Path, tmp_path: Path, pictures: list[Any]) -> None:
    """What is kept of some images alone must not be taken for others that the reference looks at again."""

    class Full(TensorFiles):
        def offer(self, key: str, tensors: Any, text: Any = None) -> None:
            if not any(self.keys()):
                super().offer(key, tensors, text)

    model, processor, mixed = mixed_tiny("llava", "gated", encoder)
    shake(mixed)
    config = LoraConfig(
        r=4,
        target_modules=family_of(model).lora_targets(model),
        modules_to_save=["model.vision_mixer.mixer"],
        init_lora_weights=False,
    )
    peft = get_peft_model(model, config)
    batch = batch_of(model, processor, pictures[:3])
    found = []
    for cache in (None, EncoderCache({0: Full(tmp_path, {})})):
        options = EngineOptions(encoder_cache=cache, max_images_per_forward=1)
        found.append(Replay(peft, batch, reference=AdaptersOff(), options=options).reference)
    assert found[0] is not None
    assert found[1] is not None
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert all(torch.equal(found[1].logps[view], logps) for view, logps in found[0].logps.items())


def test_batches_without_ids_are_refused_and_models_without_a_mixer_left_alone(
    encoder: Path, tmp_path: Path, pictures: list[Any]
) -> None:
    model, processor, _ = mixed_tiny("llava", "gated", encoder)
    options = EngineOptions(encoder_cache=cache_in(tmp_path))
    batch = replace(batch_of(model, processor, pictures[:3]), image_ids=())
    with pytest.raises(ValueError, match="image_ids"):
        measure(model, batch, options=options)
    stock, processor = tiny("llava")
    with torch.no_grad():
        measure(stock, batch_of(stock, processor, pictures[:3]), options=options)
        measure(model, batch_of(model, processor, [], [((), (3,))]), options=options)
    assert not any(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "idefics3", "internvl"])
def test_views_are_counted_without_the_tower(family: str, pictures: list[Any]) -> None:
    model, processor = tiny(family)
    batch = make_batch(model, processor, pictures[:2], [((0,), (3,)), ((1,), (3,))])
    own = family_of(model)
    tower, seen = own.module(model, own.tower), []

    def shown(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(len(own.tower_views(model.config, args, kwargs)))

    handle = tower.register_forward_pre_hook(shown, with_kwargs=True)
    ran: list[int] = []
    tower.register_forward_hook(lambda *_: ran.append(1))
    own.encode_images(model, batch.images)
    handle.remove()
    assert len(ran) == 1
    assert sum(count_views(own, model, image) for image in batch.images) == seen[0]
    assert len(ran) == 1
