"""Gemma3: blocks of image tokens, crops of panned images, a projector without linear layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import get_block_sequence_ids_for_mask

from batches import QUESTIONS, image_tensors, make_batch, plain_logps, prompt_inputs
from mllm_align.contract import Needs, View
from mllm_align.data.check import check_dataset
from mllm_align.data.collator import AlignCollator
from mllm_align.data.pixels import ImageEncoder
from mllm_align.families import family_of
from mllm_align.models import ModelArguments
from mllm_align.models.adapters import lora_config
from mllm_align.signals import EngineOptions, measure
from tiny import tiny

PACKING = pytest.mark.parametrize("packing", ["auto", "off"])
LAYOUTS = [((2, 0), (3, 12)), ((1,), (5,)), ((), (4, 2)), ((3,), (1, 13))]


def with_crops() -> tuple[Any, Any]:
    model, processor = tiny("gemma3")
    crops = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 24}
    processor.images_kwargs = {**processor.images_kwargs, **crops}
    return model, processor


@pytest.mark.parametrize("kinds", ["0", "1", "0110", "1101", "001110110", "11111"])
def test_blocks_are_those_of_the_model(kinds: str) -> None:
    ids = torch.tensor([int(kind) for kind in kinds])
    model, _ = tiny("gemma3")
    found = family_of(model).two_way_blocks(ids, {"token_type_ids": ids})
    assert found.tolist() == get_block_sequence_ids_for_mask(ids[None])[0].tolist()


@PACKING
@pytest.mark.parametrize("cropped", [False, True])
def test_logps_equal_the_plain_model_and_images_and_windows_matter(
    packing: str, cropped: bool, pictures: list[Any]
) -> None:
    model, processor = with_crops() if cropped else tiny("gemma3")
    options = EngineOptions(packing=packing)
    batch = make_batch(model, processor, pictures, LAYOUTS)
    causal = batch.map(lambda tensor: tensor)
    for prefix in causal.prefixes:
        prefix.extras["token_type_ids"] = torch.zeros_like(prefix.input_ids)
    with torch.no_grad():
        signals, _ = measure(model, batch, options=options)
        found = {branch.view: signals.logps[branch.view][branch.row].item() for branch in batch.branches}
        for branch in batch.branches:
            question = QUESTIONS[branch.prefix % 3]
            expected = plain_logps(model, processor, pictures, batch, branch, question).sum().item()
            assert found[branch.view] == pytest.approx(expected, abs=1e-4)
        one_way, _ = measure(model, causal, options=options)
        model.config.text_config.sliding_window = 4096
        wide, _ = measure(model, batch, options=options)
    for branch in batch.branches:
        shows = bool(batch.prefixes[branch.prefix].images)
        assert (abs(one_way.logps[branch.view][branch.row].item() - found[branch.view]) > 1e-3) == shows
        assert abs(wide.logps[branch.view][branch.row].item() - found[branch.view]) > 1e-3


def test_crops_follow_the_whole_image(pictures: list[Any]) -> None:
    model, processor = with_crops()
    family = family_of(model)
    images = [image_tensors(model, processor, picture) for picture in pictures]
    # 80 x 60 and 60 x 120 and 150 x 70 are far enough from square, 56 x 56 is not.
    assert [len(image["pixel_values"]) for image in images] == [3, 3, 3, 1]
    with torch.no_grad():
        together = family.encode_images(model, images).tokens
        alone = [family.encode_images(model, [image]).tokens[0] for image in images]
    assert [len(tokens) for tokens in together] == [48, 48, 48, 16]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shown", [(1, 3), (1, 0), (3,)])
def test_generate_with_crops_equals_generate_with_pixels(shown: tuple[int, ...], pictures: list[Any]) -> None:
    model, processor = with_crops()
    family = family_of(model)
    inputs = prompt_inputs(processor, "Which is red?", [pictures[index] for index in shown])
    pixels = inputs.pop("pixel_values")
    beams = {"max_new_tokens": 6, "num_beams": 2, "num_return_sequences": 2, "do_sample": False}
    with torch.no_grad():
        encoded = family.encode_images(model, [image_tensors(model, processor, picture) for picture in pictures])
        for options in ({"max_new_tokens": 6, "do_sample": False}, beams):
            outputs = family.mm_outputs(encoded, shown)
            ours = model.generate(**inputs, mm_encoder_outputs=outputs, **options)
            assert torch.equal(ours, model.generate(**inputs, pixel_values=pixels, **options))


def test_prompts_with_crops_are_what_the_processor_makes(pictures: list[Any]) -> None:
    model, processor = with_crops()
    family = family_of(model)
    needs = Needs(views=(View("image", "chosen"),))
    collate = AlignCollator(processor, lambda source: needs, family.image_keys, family.token_keys)
    row = {"images": [pictures[2], pictures[3]], "prompt": "What is it?", "chosen": "red"}
    (prefix,) = collate([row])["batch"].prefixes
    own = prompt_inputs(processor, "What is it?", row["images"])
    assert prefix.input_ids.tolist() == own["input_ids"][0].tolist()
    assert prefix.extras["token_type_ids"].tolist() == own["token_type_ids"][0].tolist()
    assert check_dataset([row], collate, progress=False).rows == 1
    _, plain = tiny("gemma3")
    assert ImageEncoder(processor, ("pixel_values",)).image_id("a") != ImageEncoder(plain, ("pixel_values",)).image_id(
        "a"
    )


def test_the_projector_has_no_linear_layer_and_can_be_trained_whole() -> None:
    model, _ = tiny("gemma3")
    with pytest.raises(ValueError, match="no linear layer of Gemma3; train_projector trains it whole"):
        lora_config(model, ModelArguments(lora_scope=("language", "projector")))
    config = lora_config(model, ModelArguments(lora_scope=("language",), train_projector=True))
    assert config.modules_to_save == ["model.multi_modal_projector"]
