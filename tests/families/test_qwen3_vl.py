"""Qwen3-VL: deepstack features travel with the tokens, and the mergers that make them belong to the projector."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from batches import image_tensors, prompt_inputs
from mllm_align.families import EncodedImages, family_of, unwrap
from tiny import tiny

ORDER = (1, 0, 1)


def logits_with(model: Any, inputs: dict[str, Any], encoded: EncodedImages) -> torch.Tensor:
    bare = {key: value for key, value in inputs.items() if key != "pixel_values"}
    return model(**bare, mm_encoder_outputs=family_of(model).mm_outputs(encoded, ORDER)).logits


def test_each_images_deepstack_features_reach_their_own_layer_and_place(pictures: list[Any]) -> None:
    model, processor = tiny("qwen3_vl")
    images = [image_tensors(model, processor, picture) for picture in pictures[:2]]
    inputs = prompt_inputs(processor, "Which is red?", [pictures[index] for index in ORDER])
    with torch.no_grad():
        encoded = family_of(model).encode_images(model, images)
        plain = model(**inputs).logits
        torch.testing.assert_close(logits_with(model, inputs, encoded), plain, atol=1e-4, rtol=0)
        for image, layers in zip(encoded.tokens, encoded.deepstack, strict=True):
            assert [layer.shape for layer in layers] == [image.shape] * 2
        layers_swapped = EncodedImages(encoded.tokens, tuple((b, a) for a, b in encoded.deepstack))
        silent = EncodedImages(encoded.tokens, tuple((a * 0, b * 0) for a, b in encoded.deepstack))
        tokens_flipped = EncodedImages(encoded.tokens, tuple((a.flip(0), b) for a, b in encoded.deepstack))
        for wrong in (layers_swapped, silent, tokens_flipped):
            assert (logits_with(model, inputs, wrong) - plain).abs().max() > 1e-2


def test_deepstack_features_of_images_together_equal_those_alone(pictures: list[Any]) -> None:
    model, processor = tiny("qwen3_vl")
    family = family_of(model)
    images = [image_tensors(model, processor, picture) for picture in pictures]
    with torch.no_grad():
        together = family.encode_images(model, images).deepstack
        alone = [family.encode_images(model, [image]).deepstack[0] for image in images]
    for layers, expected in zip(together, alone, strict=True):
        for layer, other in zip(layers, expected, strict=True):
            torch.testing.assert_close(layer, other, atol=1e-5, rtol=1e-5)


def test_projector_copies_hold_every_merger(pictures: list[Any]) -> None:
    model, processor = tiny("qwen3_vl")
    family = family_of(model)
    names = family.projectors(model)
    assert names == ["model.visual.merger", *(f"model.visual.deepstack_merger_list.{n}" for n in (0, 1))]
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=family.lora_targets(model), modules_to_save=names))
    peft(**prompt_inputs(processor, "Which is red?", pictures[:2])).logits[0, -1, :5].sum().backward()
    copies = {name: p for name, p in peft.named_parameters() if "modules_to_save" in name}
    assert len(copies) == 6 * 3
    assert all(p.requires_grad and p.grad is not None and p.grad.any() for p in copies.values())
    assert all(
        family_of(unwrap(peft)).scope_of(name.removeprefix("base_model.model.")) == "projector" for name in copies
    )
