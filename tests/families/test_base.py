"""Every family: features, forward and generate through the front door against plain calls with pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from batches import image_tensors, prompt_inputs
from mllm_align.families import SCOPES, family_of, unwrap
from tiny import FAMILIES, tiny

# The placeholders name the pictures out of order and one of them twice.
ORDER = (2, 0, 2, 1)


def without_pixels(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of a call that gets encoded images; a grid, which gives positions, stays."""
    pixels = {"pixel_values", "pixel_attention_mask", "image_sizes", "batch_num_images"}
    return {key: value for key, value in inputs.items() if key not in pixels}


def encode(model: Any, processor: Any, pictures: list[Any]) -> list[Tensor]:
    images = [image_tensors(model, processor, picture) for picture in pictures]
    with torch.no_grad():
        return list(family_of(model).encode_images(model, images).tokens)


@pytest.mark.parametrize("name", FAMILIES)
def test_images_encoded_together_equal_each_alone(name: str, pictures: list[Any]) -> None:
    model, processor = tiny(name)
    together = encode(model, processor, pictures)
    alone = [encode(model, processor, [picture])[0] for picture in pictures]
    assert len(together) == len(pictures)
    for one, other in zip(together, alone, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, atol=1e-5 * max(1.0, other.abs().max().item()), rtol=0)
    # Were all pictures alike to the tower, the comparison above would say nothing.
    assert (together[0].mean(0) - together[-1].mean(0)).abs().max() > 1e-2


@pytest.mark.parametrize("name", FAMILIES)
def test_number_of_tokens_is_number_of_placeholders(name: str, pictures: list[Any]) -> None:
    model, processor = tiny(name)
    for picture, tokens in zip(pictures, encode(model, processor, pictures), strict=True):
        ids = prompt_inputs(processor, "What is it?", [picture])["input_ids"]
        assert tokens.shape == ((ids == model.config.image_token_id).sum(), model.config.get_text_config().hidden_size)


@pytest.mark.parametrize("name", FAMILIES)
def test_forward_with_encoded_images_equals_forward_with_pixels(name: str, pictures: list[Any]) -> None:
    model, processor = tiny(name)
    family = family_of(model)
    images = [image_tensors(model, processor, picture) for picture in pictures]
    inputs = prompt_inputs(processor, "Which is red?", [pictures[i] for i in ORDER])
    with torch.no_grad():
        plain = model(**inputs).logits
        encoded = family.encode_images(model, images)
        ours = model(**without_pixels(inputs), mm_encoder_outputs=family.mm_outputs(encoded, ORDER)).logits
        flipped = encoded.replaced([tensor.flip(0) for tensor in encoded.tensors])
        other = model(**without_pixels(inputs), mm_encoder_outputs=family.mm_outputs(flipped, ORDER)).logits
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
    assert (other - plain).abs().max() > 1e-2


@pytest.mark.parametrize("name", FAMILIES)
def test_generate_with_encoded_images_equals_generate_with_pixels(name: str, pictures: list[Any]) -> None:
    model, processor = tiny(name)
    family = family_of(model)
    images = [image_tensors(model, processor, picture) for picture in pictures]
    inputs = prompt_inputs(processor, "Which is red?", [pictures[i] for i in ORDER])
    options = {"max_new_tokens": 8, "output_scores": True, "return_dict_in_generate": True}
    with torch.no_grad():
        outputs = family.mm_outputs(family.encode_images(model, images), ORDER)
        plain = model.generate(**inputs, **options)
        ours = model.generate(**without_pixels(inputs), mm_encoder_outputs=outputs, **options)
    assert torch.equal(ours.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(ours.scores), torch.stack(plain.scores), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_beams_over_a_padded_batch_are_those_of_each_prompt_alone(name: str, pictures: list[Any]) -> None:
    model, processor = tiny(name)
    family = family_of(model)
    shown = [(2, 0), (), (1,), (0, 3, 0)]
    prompts = [prompt_inputs(processor, question(n), [pictures[i] for i in order]) for n, order in enumerate(shown)]
    options = {"max_new_tokens": 6, "num_beams": 2, "num_return_sequences": 2, "do_sample": False}
    padding = {"input_ids": model.generation_config.pad_token_id}
    keys = ("input_ids", "attention_mask", *family.token_keys)
    longest = max(prompt["input_ids"].shape[1] for prompt in prompts)
    inputs = {
        key: torch.cat([left_pad(prompt[key], longest, padding.get(key, 0)) for prompt in prompts]) for key in keys
    }
    grids = [prompt["image_grid_thw"] for prompt in prompts if "image_grid_thw" in prompt]
    inputs |= {"image_grid_thw": torch.cat(grids)} if grids else {}
    with torch.no_grad():
        encoded = family.encode_images(model, [image_tensors(model, processor, picture) for picture in pictures])
        outputs = family.mm_outputs(encoded, [index for order in shown for index in order])
        together = model.generate(**inputs, mm_encoder_outputs=outputs, **options)[:, longest:].tolist()
        for number, prompt in enumerate(prompts):
            alone = model.generate(**prompt, **options)[:, prompt["input_ids"].shape[1] :].tolist()
            ours = together[2 * number : 2 * number + 2]
            assert [strip(model, ids) for ids in ours] == [strip(model, ids) for ids in alone]


def question(number: int) -> str:
    return ("Which is red?", "What colour is the small circle left of the square?", "Is it?", "How many?")[number]


def left_pad(ids: Tensor, length: int, value: int) -> Tensor:
    return nn.functional.pad(ids, (length - ids.shape[1], 0), value=value)


def strip(model: Any, ids: list[int]) -> list[int]:
    """What was generated, less the padding behind its end."""
    pad = model.generation_config.pad_token_id
    return ids[: next((place for place, token in enumerate(ids) if token == pad), len(ids))]


@pytest.mark.parametrize("name", FAMILIES)
def test_positions_are_those_of_a_plain_call(name: str, pictures: list[Any]) -> None:
    model, processor = tiny(name)
    family = family_of(model)
    images = [image_tensors(model, processor, pictures[i]) for i in ORDER]
    inputs = prompt_inputs(processor, "Which is red?", [pictures[i] for i in ORDER])
    extras = {key: inputs[key][0] for key in family.token_keys}
    positions = family.prefix_positions(model, inputs["input_ids"][0], images, extras)
    assert positions.shape == (family.position_rows, inputs["input_ids"].shape[1])
    given = positions[:, None] if family.position_rows > 1 else positions
    with torch.no_grad():
        plain = model(**inputs).logits
        ours = model(**inputs, position_ids=given).logits
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_head_is_the_models_own(name: str, pictures: list[Any]) -> None:
    model, processor = tiny(name)
    inputs = prompt_inputs(processor, "Which is red?", pictures[:1])
    with torch.no_grad():
        hidden = model.model(**inputs).last_hidden_state[0]
        torch.testing.assert_close(family_of(model).logits(model, hidden), model(**inputs).logits[0])


def part_of(model: nn.Module, module: nn.Module) -> str:
    """The scope of a layer found by identity in the model's parts, without looking at names."""
    inner = model.model
    projectors = [getattr(inner, key) for key in ("multi_modal_projector", "connector") if hasattr(inner, key)]
    projectors = projectors or [inner.visual.merger, *getattr(inner.visual, "deepstack_merger_list", ())]
    towers = [getattr(inner, key) for key in ("vision_tower", "vision_model", "visual") if hasattr(inner, key)]
    language = [getattr(inner, key) for key in ("language_model", "text_model") if hasattr(inner, key)]
    for scope, parts in (("projector", projectors), ("vision", towers), ("language", language)):
        if any(module is child for part in parts for child in part.modules()):
            return scope
    return "head"


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "nf4"])
@pytest.mark.parametrize("name", FAMILIES)
def test_lora_targets_are_the_linear_layers_of_their_scope(name: str, quantized: bool) -> None:
    model, _ = tiny(name, quantized=quantized)
    family = family_of(model)
    unread = {"llava", "llava_next"}
    for scope in SCOPES:
        expected = {
            key
            for key, module in model.named_modules()
            if isinstance(module, nn.Linear) and part_of(model, module) == scope
        }
        if scope == "vision" and name in unread:
            expected = {key for key in expected if ".layers.1." not in key}
        targets = family.lora_targets(model, [scope])
        # Gemma3's projector is a norm and a bare matrix.
        assert bool(expected) != (scope == "projector" and name == "gemma3")
        assert sorted(targets) == sorted(expected)
    assert len(family.lora_targets(model, SCOPES)) == sum(len(family.lora_targets(model, [s])) for s in SCOPES)
    assert "lm_head" not in family.lora_targets(model, SCOPES)
    with pytest.raises(ValueError, match="unknown LoRA scope 'tower'"):
        family.lora_targets(model, ["tower"])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_lora_target_of_the_image_path_gets_a_gradient(name: str, pictures: list[Any]) -> None:
    model, processor = tiny(name)
    family = family_of(model)
    targets = family.lora_targets(model, SCOPES)
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    adapted = unwrap(peft_model)
    images = [image_tensors(adapted, processor, picture) for picture in pictures[:2]]
    inputs = prompt_inputs(processor, "Which is red?", pictures[:2])
    outputs = family.mm_outputs(family.encode_images(adapted, images), (0, 1))
    logits = adapted(**without_pixels(inputs), mm_encoder_outputs=outputs).logits
    logits[0, -1].float().log_softmax(-1)[:5].sum().backward()
    trained = {key: value for key, value in peft_model.named_parameters() if value.requires_grad}
    assert len(trained) == 2 * len(targets)
    assert [key for key, value in trained.items() if value.grad is None or not value.grad.any()] == []
