"""LLaVA-OneVision: tiles for an image alone in its prompt, one view for one of several, both in one batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from batches import image_tensors, prompt_inputs
from mllm_align.families import family_of
from tiny import tiny

TOKENS_PER_TILE = 16


def several_tensors(processor: Any, pictures: list[Any]) -> list[dict[str, torch.Tensor]]:
    """Per picture the tensors that the processor makes of it as one of the pictures of one prompt."""
    text = processor.image_token * len(pictures)
    whole = processor(text=[text], images=[pictures], return_tensors="pt")
    count = whole["batch_num_images"]
    keys = ("pixel_values", "image_sizes")
    return [
        {key: whole[key][number : number + 1] for key in keys} | {"batch_num_images": count}
        for number in range(len(pictures))
    ]


def test_base_view_shrunk_tiles_and_newlines(pictures: list[Any]) -> None:
    model, processor = tiny("llava_onevision")
    # 56 x 56 fills one tile; 80 x 60 gets two, of whose 4 x 8 patches 4 x 6 hold it, which are shrunk to 3 x 4.
    images = [image_tensors(model, processor, picture) for picture in (pictures[3], pictures[0])]
    with torch.no_grad():
        tokens = family_of(model).encode_images(model, images).tokens
    assert [len(entry) for entry in tokens] == [TOKENS_PER_TILE + 4 * (4 + 1), TOKENS_PER_TILE + 3 * (4 + 1)]
    newline = model.model.image_newline
    assert all(torch.equal(tokens[1][TOKENS_PER_TILE + 5 * row + 4], newline) for row in range(3))
    assert family_of(model).scope_of("model.image_newline") == "projector"


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 0, 1)])
def test_alone_and_several_in_one_vision_pass(order: tuple[int, ...], pictures: list[Any]) -> None:
    model, processor = tiny("llava_onevision")
    family = family_of(model)
    alone = [image_tensors(model, processor, picture) for picture in pictures[:2]]
    several = several_tensors(processor, pictures[2:])
    kinds = [*alone, *several]
    passes: list[int] = []
    model.model.vision_tower.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        together = family.encode_images(model, [kinds[index] for index in order]).tokens
        assert len(passes) == 1
        expected = [family.encode_images(model, [image]).tokens[0] for image in kinds]
    for place, index in enumerate(order):
        torch.testing.assert_close(together[place], expected[index], atol=1e-5, rtol=0)
    assert [len(expected[index]) for index in (2, 3)] == [TOKENS_PER_TILE + 1] * 2


def test_a_prompt_of_several_images_equals_the_plain_model(pictures: list[Any]) -> None:
    model, processor = tiny("llava_onevision")
    family = family_of(model)
    parts = [{"type": "image"}] * 2 + [{"type": "text", "text": "Which is red?"}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    inputs = processor(text=[text], images=[pictures[:2]], return_tensors="pt")
    tokens_only = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        encoded = family.encode_images(model, several_tensors(processor, pictures[:2]))
        ours = model(**tokens_only, mm_encoder_outputs=family.mm_outputs(encoded, (0, 1))).logits
        torch.testing.assert_close(ours, model(**inputs).logits, atol=1e-4, rtol=0)
    flat = prompt_inputs(processor, "Which is red?", pictures[:2])
    assert flat["input_ids"].shape[1] > inputs["input_ids"].shape[1]
