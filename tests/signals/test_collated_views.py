"""Rows through collator and engine against the processor and the model called by hand, objective by objective."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor

from batches import processed
from layouts import SIZES, assert_same_signals, loaded_attention, picture
from mllm_align.contract import Batch, Needs, Ragged, Signals, View, needs_for
from mllm_align.data.collator import AlignCollator
from mllm_align.families import family_of
from mllm_align.objectives import DPO, SVCO, NextToken, Weighted
from mllm_align.signals import AdaptersOff, measure
from tiny import FAMILIES, tiny

# What a response is in the text, behind the generation prompt.
RESPONSE = {
    "llava": " {}</s>",
    "llava_next": " {}</s>",
    "llava_onevision": "{}<|im_end|>",
    "qwen2_vl": "{}<|im_end|>",
    "qwen2_5_vl": "{}<|im_end|>",
    "qwen3_vl": "{}<|im_end|>",
    "qwen3_vl_moe": "{}<|im_end|>",
    "internvl": "{}<|im_end|>",
    "idefics3": " {}<end_of_utterance>",
    "smolvlm": " {}<end_of_utterance>",
    "pixtral": "{}</s>",
    "mistral3": "{}</s>",
    "gemma3": "{}<end_of_turn>",
    "paligemma": "{}<eos>",
    "paligemma2": "{}<eos>",
}
PAIR = (View("image", "chosen"), View("contrast_image", "rejected"))
CROSSED = (View("contrast_image", "chosen"), View("image", "rejected"), View(None, "chosen"), View(None, "rejected"))
NEEDS = Needs(views=(View("image", "chosen"), View(None, "rejected")), optional=CROSSED[:1])
# Per objective and source: the views of its rows, and whether the reference scores them.
OBJECTIVES: dict[str, tuple[Any, dict[str, tuple[tuple[View, ...], bool]]]] = {
    "svco": (SVCO(), {"default": (PAIR + CROSSED, True)}),
    "dpo": (DPO(), {"default": ((View("image", "chosen"), View("image", "rejected")), True)}),
    "next_token": (NextToken(), {"default": (PAIR, False)}),
    "weighted": (
        Weighted((SVCO(), 1.0, "pairs"), (NextToken(), 0.5, "instructions")),
        {"pairs": (PAIR + CROSSED, True), "instructions": (PAIR, False)},
    ),
}
WORDS = ("Which is red?", "Describe both.", "How many shapes are left of the small star in the picture?", "Why?")
ANSWERS = ("red", "No.", "The large blue square is above it.", "yes, two", "There are two stars and a circle.")
PICTURES = tuple(picture(size, number) for number, size in enumerate(SIZES))
IMAGE = {"type": "image"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


@st.composite
def rows(draw: Any, source: str, paired: bool) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, list[Any]]]:
    """A row, and by hand: its conversation in parts, and the pictures of each image column."""
    shown = draw(st.lists(st.sampled_from(range(6)), min_size=1 if paired else 0, max_size=3))
    images = [PICTURES[number] for number in shown]
    first, second = draw(st.tuples(st.sampled_from(WORDS), st.sampled_from(WORDS)))
    form = draw(st.sampled_from(("plain", "literal", "parts", "turns")))
    pictures = [IMAGE] * len(images)
    if form == "plain":
        prompt, chat = first, [user(*pictures, text(first))]
    elif form == "literal":
        prompt = f"{first} " + "<image>" * len(images) + f" {second}"
        parts = [text(f"{first} "), *pictures, text(f" {second}")] if images else [text(prompt)]
        chat = [user(*parts)]
    elif form == "parts":
        chat = [user(text(first), *pictures[1:], text(second), *pictures[:1])]
        prompt = chat
    else:
        answer = {"role": "assistant", "content": [text(draw(st.sampled_from(ANSWERS)))]}
        chat = [user(*pictures, text(first)), answer, user(text(second))]
        prompt = chat
    row: dict[str, Any] = {"prompt": prompt, "source": source}
    row["chosen"], row["rejected"] = draw(st.tuples(st.sampled_from(ANSWERS), st.sampled_from(ANSWERS)))
    if draw(st.booleans()):
        row["system"] = "Be brief."
        chat = [{"role": "system", "content": [text("Be brief.")]}, *chat]
    if images:
        row |= {"image": images[0]} if len(images) == 1 and draw(st.booleans()) else {"images": images}
    columns = {"image": images}
    if paired or (images and draw(st.booleans())):
        row |= draw(contrasts(len(images)))
        given = row["contrast_image"]
        place = row.get("contrast_index", 0)
        columns["contrast_image"] = (
            given if isinstance(given, list) else [*images[:place], given, *images[place + 1 :]]
        )
    return row, chat, columns


@st.composite
def contrasts(draw: Any, count: int) -> dict[str, Any]:
    other = st.sampled_from(PICTURES)
    if draw(st.booleans()):
        return {"contrast_image": draw(st.lists(other, min_size=count, max_size=count))}
    index = {"contrast_index": draw(st.integers(0, count - 1))} if count > 1 or draw(st.booleans()) else {}
    return {"contrast_image": draw(other)} | index


def user(*parts: Mapping[str, str]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def by_hand(
    name: str, model: Any, processor: Any, chat: list[dict[str, Any]], images: list[Any], response: str
) -> Tensor:
    """(R,) log-probabilities of a response, by the chat template, one call of the processor and one of the model."""
    if not images:
        chat = [{**turn, "content": [part for part in turn["content"] if part != IMAGE]} for turn in chat]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    shown = [images] if images else []
    bos = processor.tokenizer.bos_token
    rules = {"add_special_tokens": bos is None or not prompt.startswith(bos)}
    if name.startswith("paligemma"):
        whole = processed(processor, prompt, shown, suffix=[response])
        rules = {}
    else:
        whole = processed(processor, prompt + RESPONSE[name].format(response), shown, **rules)
    start = processed(processor, prompt, shown, **rules)["input_ids"].shape[1]
    targets = whole["input_ids"][0, start:]
    assert processor.tokenizer.decode(targets) == RESPONSE[name].format(response)
    logps = model(**whole).logits[0, start - 1 : -1].float().log_softmax(-1)
    return logps.gather(1, targets[:, None]).squeeze(1)


def signals_by_hand(name: str, model: Any, processor: Any, drawn: Any, needs: Any, *, reference: bool) -> Signals:
    """Views in the order of the rows; a view that a row has no image column for, is not there."""
    found: dict[View, list[Tensor]] = {}
    none = torch.zeros(0)
    for number, (row, chat, columns) in enumerate(drawn):
        views, referenced = needs[row["source"]]
        for view in views:
            if view.image is not None and view.image not in columns:
                continue
            own = found.setdefault(view, [none] * len(drawn))
            if referenced or not reference:
                images = columns[view.image] if view.image else []
                own[number] = by_hand(name, model, processor, chat, images, row[view.response])
    counts = {view: torch.tensor([len(values) for values in own]) for view, own in found.items()}
    return Signals(
        logps={view: torch.stack([values.sum() for values in own]) for view, own in found.items()},
        num_tokens=counts,
        token_logps={
            view: Ragged(torch.cat(own), torch.arange(len(drawn)).repeat_interleave(counts[view]))
            for view, own in found.items()
        },
    )


@functools.cache
def policy_of(name: str) -> tuple[Any, Any]:
    model, processor = tiny(name)
    targets = family_of(model).lora_targets(model, ("language",))
    torch.manual_seed(3)
    return get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False)).eval(), processor


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", RESPONSE)
def test_signals_are_those_of_processor_and_model_called_by_hand(name: str, objective: str) -> None:
    measured, needs = OBJECTIVES[objective]
    of_source = [rows(source, paired=CROSSED[0] in views) for source, (views, _) in needs.items()]

    @seed(10 * list(RESPONSE).index(name) + list(OBJECTIVES).index(objective))
    @settings(
        max_examples=2,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.lists(st.one_of(*of_source), min_size=2, max_size=3))
    def check(drawn: list[Any]) -> None:
        peft, processor = policy_of(name)
        family = family_of(peft)
        collate = AlignCollator(
            processor, functools.partial(needs_for, measured), family.image_keys, family.token_keys
        )
        batch = collate([row for row, _, _ in drawn])["batch"]
        assert batch.sources == tuple(row["source"] for row, _, _ in drawn)
        with torch.no_grad():
            wants = measured.needs.reference
            policy, other = measure(peft, batch, reference=AdaptersOff() if wants else None, tokens=True)
            with loaded_attention(peft) as hf:
                plain = signals_by_hand(name, hf, processor, drawn, needs, reference=False)
                assert_same_signals(policy, plain, 1e-4)
                if not wants:
                    assert other is None
                    return
                with peft.disable_adapter():
                    plain = signals_by_hand(name, hf, processor, drawn, needs, reference=True)
        assert_same_signals(other, plain, 1e-4)

    check()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_side_of_padding_changes_nothing(name: str) -> None:
    peft, processor = policy_of(name)
    family = family_of(peft)
    own = [{"prompt": words, "chosen": ANSWERS[2], "rejected": ANSWERS[0]} for words in WORDS[:3]]
    own[0] |= {"images": list(PICTURES[:2]), "contrast_image": PICTURES[2], "contrast_index": 1}
    own[1] |= {"image": PICTURES[3]}
    batches, found = [], []
    for side in ("left", "right"):
        padded = copy.deepcopy(processor)
        padded.tokenizer.padding_side = side
        collate = AlignCollator(padded, lambda source: NEEDS, family.image_keys, family.token_keys)
        batches.append(collate(own)["batch"])
        with torch.no_grad():
            policy, _ = measure(peft, batches[-1], tokens=True)
        found.append(policy)
    for left, right in zip(parts(batches[0]), parts(batches[1]), strict=True):
        assert torch.equal(left, right)
    assert batches[0].map(torch.numel) == batches[1].map(torch.numel)
    for view in batches[0].views:
        assert torch.equal(found[0].token_logps[view].values, found[1].token_logps[view].values)


def parts(batch: Batch) -> list[Tensor]:
    """Every tensor of a batch."""
    tensors: list[Tensor] = []
    batch.map(lambda tensor: tensors.append(tensor) or tensor)
    return tensors
