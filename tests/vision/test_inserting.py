"""A mixer's layers between those of the language model: in plain calls, generation, packs, caches, copies, files."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from batches import QUESTIONS, image_tensors, make_batch, plain_call, plain_logps
from mixed import OPTIONS, mixed_tiny, prompts, shake
from mllm_align.data.tensor_files import TensorFiles
from mllm_align.families import family_of, inner
from mllm_align.signals import AdaptersOff, EngineOptions, Replay, measure
from mllm_align.signals.feature_cache import FeatureCache
from mllm_align.vision.attach import attach, detach
from mllm_align.vision.mixed_vision import MixedVision, mixed_of, switched_off
from mllm_align.vision.mixer_files import attach_saved, check_fingerprint, save_mixer
from tiny import FAMILIES, tiny
from tiny_encoders import save_encoder

# One of each way to lay tokens out: a list of images, tiles with newlines, windows, deepstack, equal views, images
# of their own shape, prompts that see themselves.
LAID_OUT = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "pixtral", "paligemma2")
INSERTED: dict[str, Any] = {"residual": True, "llm_layers": 1, "llm_stride": 1, "depth": 1}
LAYOUTS = [((0,), (3, 6, 1)), ((1,), (5, 2)), ((2, 0), (4, 4)), ((), (7, 3))]
MIXER = "model.vision_mixer.mixer"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder("dinov2", tmp_path_factory.mktemp("encoder"))


def shaken(family: str, encoder: Path, **options: Any) -> tuple[Any, Any, MixedVision]:
    deep = family.startswith("qwen3")  # whose tiny model has three layers, the others two
    model, processor, mixed = mixed_tiny(family, "sva", encoder, **{**INSERTED, "llm_layers": 1 + deep, **options})
    shake(mixed)
    return model, processor, mixed


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_outputs_are_the_same_at_first(family: str, encoder: Path, pictures: list[Any]) -> None:
    stock, processor = tiny(family)
    processor.tokenizer.padding_side = "left"
    before = stock(**prompts(processor, pictures)).logits
    model, processor, mixed = mixed_tiny(family, "sva", encoder, **INSERTED)
    inputs = prompts(processor, pictures)
    assert torch.equal(model(**inputs).logits, before)
    for layer in mixed.kind.inserted:  # type: ignore[union-attr]
        layer.mlp[2].weight.normal_()
    assert (model(**inputs).logits - before).abs().max() > 1e-3
    with switched_off(mixed):
        assert torch.equal(model(**inputs).logits, before)
    detach(model, processor)
    assert torch.equal(model(**inputs).logits, before)
    assert type(inner(model)) is type(inner(stock))


@pytest.mark.parametrize("autocast", [False, True])
@torch.no_grad()
def test_in_half_precision(autocast: bool, encoder: Path, pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    processor.tokenizer.padding_side = "left"
    if not autocast:
        model.bfloat16()
    inputs = prompts(processor, pictures)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)

    def logits() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return model(**inputs).logits

    before = logits()
    mixed = attach(model, {"kind": "sva", **OPTIONS["sva"], **INSERTED}, [str(encoder)], processor)
    assert torch.equal(logits(), before)
    shake(mixed)
    changed = logits()
    assert changed.isfinite().all()
    assert (changed - before).abs().max() > 0.1


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
@torch.no_grad()
def test_states_of_image_tokens_change_behind_the_chosen_layer_and_no_others(
    family: str, encoder: Path, pictures: list[Any]
) -> None:
    model, processor, mixed = shaken(family, encoder)
    own = family_of(model)
    layers: Any = own.module(model, f"{own.language_model}.layers")
    kept: dict[str, Tensor] = {}
    # Before ours, which is put there when the model is called, and behind it.
    layers[0].register_forward_hook(lambda layer, args, output: kept.update(came=output))
    layers[1].register_forward_pre_hook(lambda layer, args: kept.update(went=args[0]))
    inputs = prompts(processor, pictures)
    model(**inputs)
    moved = (kept["went"] != kept["came"]).any(dim=-1)
    where = inputs["input_ids"] == model.config.image_token_id
    assert not moved[~where].any()
    features = inner(model).get_image_features(**{key: inputs[key] for key in own.image_keys})
    (layer,) = features.deepstack_features
    rows = torch.cat(list(layer))
    in_cell = rows[:, 0] > 0.5
    assert torch.equal(moved[where], in_cell)
    assert bool(in_cell.all()) == (family != "llava_next")  # which has newlines
    torch.testing.assert_close(kept["went"][where], mixed.kind.insert(0, kept["came"][where], rows))


def generation(model: Any) -> dict[str, Any]:
    """Four tokens, none of which is an image's."""
    unwanted = [model.config.image_token_id]
    return {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "suppress_tokens": unwanted}


@pytest.mark.parametrize("family", LAID_OUT)
@torch.no_grad()
def test_generating(family: str, encoder: Path, pictures: list[Any]) -> None:
    """Cached or not, in a batch padded on the left or alone, in chunks."""
    model, processor, _ = shaken(family, encoder)
    inputs = prompts(processor, pictures)
    options = generation(model)
    together = model.generate(**inputs, **options)
    assert torch.equal(together, model.generate(**inputs, **options, use_cache=False))
    text = f"{processor.image_token}What is it?"
    alone = processor(text=[text], images=[pictures[0]], return_tensors="pt")
    assert torch.equal(together[0, -4:], model.generate(**alone, **options)[0, -4:])
    if family != "paligemma2":  # whose prompts see themselves, as chunks of them cannot
        assert torch.equal(together, model.generate(**inputs, **options, prefill_chunk_size=7))


@pytest.mark.parametrize("family", LAID_OUT)
@torch.no_grad()
def test_beams_are_scored_as_plain_calls_score_them(family: str, encoder: Path, pictures: list[Any]) -> None:
    """Every beam of every prompt reads the windows of its own image."""
    model, processor, _ = shaken(family, encoder)
    inputs = prompts(processor, pictures)
    options = {**generation(model), "num_beams": 3}
    found = model.generate(
        **inputs, **options, num_return_sequences=3, output_scores=True, return_dict_in_generate=True
    )
    assert len(found.sequences) == 6
    # As the evaluation does: encoded once, in another order.
    own = family_of(model)
    encoded = own.encode_images(model, [image_tensors(model, processor, pictures[number]) for number in (1, 0)])
    rest = {key: value for key, value in inputs.items() if key not in own.image_keys or key == "image_grid_thw"}
    again = model.generate(
        **rest, **options, num_return_sequences=3, mm_encoder_outputs=own.mm_outputs(encoded, [1, 0])
    )
    assert torch.equal(again, found.sequences)
    for prompt, question in enumerate(("What is it?", "Is the star left of the red square?")):
        text = [f"{processor.image_token}{question}"]
        alone = dict(processor(text=text, images=[pictures[prompt]], return_tensors="pt"))
        alone.pop("labels", None)
        for number in range(3 * prompt, 3 * prompt + 3):
            logps, _ = plain_call(model, alone, found.sequences[number, -4:])
            assert found.sequences_scores[number].item() == pytest.approx(logps.mean().item(), abs=1e-4)


@pytest.mark.parametrize("packing", ["auto", "off"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logps_equal_the_plain_model(family: str, packing: str, encoder: Path, pictures: list[Any]) -> None:
    model, processor, _ = shaken(family, encoder)
    batch = make_batch(model, processor, pictures[:3], LAYOUTS)
    signals, _ = measure(model, batch, tokens=True, options=EngineOptions(packing=packing))
    for branch in batch.branches:
        expected = plain_logps(model, processor, pictures, batch, branch, QUESTIONS[branch.prefix % 3])
        torch.testing.assert_close(signals.token_logps[branch.view].values, expected, atol=1e-4, rtol=0)


def trained(family: str, encoder: Path) -> tuple[Any, Any]:
    """LoRA and a trained copy of the mixer, neither of which is as it began."""
    model, processor, _ = shaken(family, encoder)
    targets = family_of(model).lora_targets(model, ["language"])
    peft: Any = get_peft_model(model, LoraConfig(r=4, target_modules=targets, modules_to_save=[MIXER])).train()
    generator = torch.Generator().manual_seed(3)
    for parameter in peft.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return peft, processor


def loss_of(policy: Any, reference: Any) -> Tensor:
    """Couples every view with every other."""
    parts = [value - reference.logps[view] for view, value in policy.logps.items()]
    return (torch.stack(parts).sum() / 50).tanh() + sum((n + 1.5) * (p / 10).tanh().sum() for n, p in enumerate(parts))


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen3_vl", "internvl"])
def test_gradients_are_the_same_plain_cached_and_checkpointed(family: str, encoder: Path, pictures: list[Any]) -> None:
    peft, processor = trained(family, encoder)
    batch = make_batch(peft.get_base_model(), processor, pictures[:3], LAYOUTS)
    policy, reference = measure(peft, batch, reference=AdaptersOff())
    with torch.no_grad(), peft.disable_adapter():
        base, _ = measure(peft, batch)
    assert reference is not None
    for view in batch.views:
        torch.testing.assert_close(reference.logps[view], base.logps[view], atol=1e-4, rtol=0)
    assert max((reference.logps[view] - policy.logps[view]).abs().max() for view in batch.views) > 1e-2
    loss_of(policy, reference).backward()
    expected = gradients(peft)
    without = {name for name, p in peft.named_parameters() if p.requires_grad} - expected.keys()
    assert not without

    small = EngineOptions(max_tokens_per_forward=1, max_images_per_forward=2)
    replay = Replay(peft, batch, reference=AdaptersOff(), options=small)
    loss_of(replay.policy, replay.reference).backward()
    for step in replay.passes():
        step().backward()
    compare(gradients(peft), expected)

    peft.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    loss_of(*measure(peft, batch, reference=AdaptersOff())).backward()
    compare(gradients(peft), expected)


def compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max()
        assert scale > 0, name
        torch.testing.assert_close(found[name] / scale, gradient / scale, atol=1e-3, rtol=0, msg=name)


@pytest.mark.parametrize("family", ["llava_next", "qwen3_vl", "internvl"])
@torch.no_grad()
def test_kept_features_bring_the_windows_back(
    family: str, encoder: Path, tmp_path: Path, pictures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor, mixed = shaken(family, encoder)
    batch = make_batch(model, processor, pictures[:3], LAYOUTS)
    batch = replace(batch, image_ids=tuple(f"{number:032x}" for number in range(3)))
    plain, _ = measure(model, batch)
    options = EngineOptions(feature_cache=FeatureCache(TensorFiles(tmp_path, {})))
    measure(model, batch, options=options)
    monkeypatch.setattr(mixed.kind, "forward", lambda *_: pytest.fail("the mixer was called"))
    again, _ = measure(model, batch, options=options)
    for view in batch.views:
        assert torch.equal(again.logps[view], plain.logps[view])


@torch.no_grad()
def test_an_encoder_that_is_off_while_images_are_encoded_is_off_for_the_layers(
    encoder: Path, pictures: list[Any]
) -> None:
    model, processor, mixed = shaken("llava", encoder)
    inputs = prompts(processor, pictures)
    rest = {key: value for key, value in inputs.items() if key != "pixel_values"}
    with switched_off(mixed, [0]):
        expected = model(**inputs).logits
        features = inner(model).get_image_features(inputs["pixel_values"])
    assert torch.equal(model(**rest, mm_encoder_outputs={"image": features}).logits, expected)
    assert not torch.equal(model(**inputs).logits, expected)


@torch.no_grad()
def test_merged_layers_are_those_that_were_trained(encoder: Path, pictures: list[Any]) -> None:
    peft, processor = trained("llava", encoder)
    inputs = prompts(processor, pictures)
    before = peft.eval()(**inputs).logits
    with peft.disable_adapter():
        assert (peft(**inputs).logits - before).abs().max() > 1e-2
    torch.testing.assert_close(peft.merge_and_unload()(**inputs).logits, before, atol=1e-3, rtol=0)


@torch.no_grad()
def test_copies_and_files_have_layers_of_their_own(encoder: Path, tmp_path: Path, pictures: list[Any]) -> None:
    model, processor, mixed = shaken("llava", encoder)
    inputs = prompts(processor, pictures)
    before = model(**inputs).logits
    save_mixer(model, tmp_path, processor)
    other, twin = copy.deepcopy(model), None
    assert torch.equal(other(**inputs).logits, before)
    twin = mixed_of(inner(other))
    assert twin is not None
    shake(twin, seed=1)
    assert not torch.equal(other(**inputs).logits, before)
    assert torch.equal(model(**inputs).logits, before)
    loaded, fresh = tiny("llava")
    fresh.tokenizer.padding_side = "left"
    attach_saved(loaded, tmp_path, fresh)
    check_fingerprint(loaded, fresh, tmp_path)
    assert torch.equal(loaded(**prompts(fresh, pictures)).logits, before)
    assert mixed.reading is None
    assert mixed.encoding is None


@torch.no_grad()
def test_what_cannot_work_is_refused(encoder: Path, pictures: list[Any]) -> None:
    for options in ({"llm_layers": 2}, {"llm_start": 1}):
        with pytest.raises(ValueError, match="take fewer llm_layers"):
            mixed_tiny("llava", "sva", encoder, **{**INSERTED, **options})
    model, processor, mixed = shaken("llava", encoder)
    inputs = prompts(processor, pictures)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    features = inner(model).get_image_features(inputs["pixel_values"])
    mask = inputs["attention_mask"]
    embeds[inputs["input_ids"] == model.config.image_token_id] = model.get_input_embeddings().weight[
        model.config.image_token_id
    ]
    with pytest.raises(ValueError, match="finds image tokens by input_ids"):
        model(inputs_embeds=embeds, attention_mask=mask, mm_encoder_outputs={"image": features})
    rest = {"input_ids": inputs["input_ids"], "attention_mask": mask}
    features.deepstack_features = None
    with pytest.raises(ValueError, match="has image tokens alone"):
        model(**rest, mm_encoder_outputs={"image": features})
    assert mixed.reading is None
    with switched_off(mixed):
        assert model(**rest, mm_encoder_outputs={"image": features}).logits.isfinite().all()
