"""PaliGemma 1 and 2: the processor's own layout of prompts, prompts that see all of themselves, capped logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from batches import QUESTIONS, make_batch, plain_logps, processed, prompt_inputs
from mllm_align.contract import Needs, View
from mllm_align.data.check import check_dataset
from mllm_align.data.collator import AlignCollator
from mllm_align.data.errors import DataError
from mllm_align.families import family_of
from mllm_align.signals import EngineOptions, measure
from templates import PALIGEMMA_TEMPLATE
from tiny import tiny

BOTH = pytest.mark.parametrize("name", ["paligemma", "paligemma2"])
NEEDS = Needs(views=tuple(View(image, response) for image in ("image", None) for response in ("chosen", "rejected")))


def collator(template: str | None) -> tuple[Any, AlignCollator]:
    model, processor = tiny("paligemma")
    processor.chat_template = template
    family = family_of(model)
    return processor, AlignCollator(processor, lambda source: NEEDS, family.image_keys, family.token_keys)


@pytest.mark.parametrize("template", [None, PALIGEMMA_TEMPLATE], ids=["no template", "template"])
@pytest.mark.parametrize("count", [1, 2])
def test_prompt_and_response_are_prefix_and_suffix(template: str | None, count: int, pictures: list[Any]) -> None:
    processor, collate = collator(template)
    row = {"images": pictures[:count], "prompt": "What is it?", "chosen": "a red circle", "rejected": "Not it."}
    batch = collate([row])["batch"]
    response_value = family_of(tiny("paligemma")[0]).response_values["token_type_ids"]
    for branch in batch.branches:
        prefix = batch.prefixes[branch.prefix]
        if branch.view.image is None:
            assert processor.tokenizer.decode(prefix.input_ids) == "<bos>What is it?\n"
            assert prefix.extras["token_type_ids"].tolist() == [0] * prefix.input_ids.numel()
            continue
        own = processor(
            text=["<image>" * count + "What is it?"],
            images=[pictures[:count]],
            suffix=[row[branch.view.response]],
            return_tensors="pt",
        )
        assert own["input_ids"][0].tolist() == [*prefix.input_ids.tolist(), *branch.token_ids.tolist()]
        kinds = prefix.extras["token_type_ids"].tolist() + [response_value] * branch.token_ids.numel()
        assert own["token_type_ids"][0].tolist() == kinds
        scored = own["labels"][0][own["labels"][0] != -100]
        assert scored.tolist() == branch.token_ids.tolist()
    assert check_dataset([row], collate, progress=False).rows == 1


@pytest.mark.parametrize("parts", ["it", "ti", "iti", "tii"])
def test_bos_stands_behind_the_last_image(parts: str, pictures: list[Any]) -> None:
    processor, collate = collator(None)
    kinds = {"i": {"type": "image"}, "t": {"type": "text", "text": "Which?"}}
    content = [kinds[part] for part in parts]
    images = pictures[: parts.count("i")]
    row = {"images": images, "prompt": [{"role": "user", "content": content}], "chosen": "red", "rejected": "blue"}
    batch = collate([row])["batch"]
    text = "".join({"i": "<image>", "t": "Which?"}[part] for part in parts)
    expected = processor(text=[text], images=[images], return_tensors="pt")["input_ids"][0]
    assert batch.prefixes[0].input_ids.tolist() == expected.tolist()


def test_turns_need_a_template() -> None:
    _, collate = collator(None)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}]
    with pytest.raises(DataError, match=r"PaliGemmaProcessor has no chat template.*set processor\.chat_template"):
        collate([{"prompt": turns, "chosen": "red", "rejected": "blue"}])


@pytest.mark.parametrize("packing", ["auto", "off"])
@BOTH
def test_a_prompt_sees_all_of_itself(name: str, packing: str, pictures: list[Any]) -> None:
    model, processor = tiny(name)
    batch = make_batch(model, processor, pictures[:2], [((0,), (3, 12)), ((1,), (9,)), ((), (4, 2))])
    with torch.no_grad():
        signals, _ = measure(model, batch, options=EngineOptions(packing=packing))
        for branch in batch.branches:
            question = QUESTIONS[branch.prefix % 3]
            value = signals.logps[branch.view][branch.row].item()
            expected = plain_logps(model, processor, pictures, batch, branch, question).sum().item()
            assert value == pytest.approx(expected, abs=1e-4)
            prefix, count = batch.prefixes[branch.prefix], branch.token_ids.numel()
            text = "<image>" * len(prefix.images) + question
            inputs = processed(processor, text, [pictures[i] for i in prefix.images])
            inputs["input_ids"] = torch.cat([inputs["input_ids"], branch.token_ids[None]], dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            inputs["token_type_ids"] = torch.ones_like(inputs["input_ids"])
            causal = model(**inputs).logits[0, -count - 1 : -1].log_softmax(-1)
            assert abs(causal.gather(1, branch.token_ids[:, None]).sum().item() - value) > 1e-2


@BOTH
def test_windows_are_shorter_than_prompts_and_responses(name: str, pictures: list[Any]) -> None:
    model, processor = tiny(name)
    batch = make_batch(model, processor, pictures[:1], [((0,), (3, 14))])
    with torch.no_grad():
        before, _ = measure(model, batch)
        model.config.text_config.sliding_window = 4096 if name == "paligemma2" else None
        after, _ = measure(model, batch)
    changed = [abs(before.logps[view] - after.logps[view]).max().item() > 1e-3 for view in batch.views]
    assert changed == [name == "paligemma2"] * 2


@pytest.mark.parametrize("outside", [False, True])
def test_one_mask_per_kind_of_layer_reaches_gemma2(outside: bool, pictures: list[Any]) -> None:
    model, processor = tiny("paligemma2")
    family = family_of(model)
    inputs = prompt_inputs(processor, "Which is red?", pictures[:2])
    if outside:
        # The image token of a checkpoint may lie behind its vocabulary.
        is_image = inputs["input_ids"] == model.config.image_token_id
        model.config.image_token_id = model.config.text_config.vocab_size
        inputs["input_ids"] = inputs["input_ids"].masked_fill(is_image, model.config.image_token_id)
    size = inputs["input_ids"].shape[1]
    nothing = torch.zeros(1, 1, size, size)
    with torch.no_grad():
        encoded = family.encode_images(model, [{"pixel_values": image[None]} for image in inputs["pixel_values"]])
        found = family.hidden_states(
            model,
            input_ids=inputs["input_ids"],
            attention_mask={"full_attention": nothing, "sliding_attention": nothing},
            position_ids=torch.arange(1, size + 1)[None],
            token_type_ids=inputs["token_type_ids"],
            mm_encoder_outputs=family.mm_outputs(encoded, (0, 1)),
        )
        expected = model.model(**inputs).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_logits_are_capped_where_the_model_caps_them() -> None:
    generator = torch.Generator().manual_seed(0)
    for name, cap in (("paligemma", None), ("paligemma2", 5.0)):
        model, _ = tiny(name)
        hidden = 20 * torch.randn(3, 64, generator=generator)
        bare = model.lm_head(hidden)
        logits = family_of(model).logits(model, hidden)
        assert bare.abs().max() > 5
        torch.testing.assert_close(logits, bare if cap is None else cap * torch.tanh(bare / cap))
