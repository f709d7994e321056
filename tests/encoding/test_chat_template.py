"""The template that asks by itself: the collator's own tokens, whatever the instruction holds."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from mllm_align.contract import Embedding, Feature, Needs
from mllm_align.data.collator import AlignCollator
from mllm_align.encoding.chat_template import asking_template, check_tokens
from mllm_align.families import family_of
from tiny import tiny

IMAGE, TEXT = "What's in it?", "What does it say?"
FLAT = (
    "{% for message in messages %}{{ message.role + ': ' + message.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def embedding(image: str | None = IMAGE, text: str = TEXT) -> Embedding:
    column = "image" if image is not None else "prompt"
    return Embedding(
        {
            "image": Feature("image", "embedding", column, None, "last", prompt=image),
            "text": Feature("text", "embedding", "caption", None, "last", prompt=text),
        },
        {},
    )


def asking(processor: Any, given: Embedding, replace: dict[str, str] | None = None) -> Any:
    other = copy.deepcopy(processor)
    other.chat_template = asking_template(processor, given, replace or {})
    return other


def ids(processor: Any, content: Any) -> torch.Tensor:
    chat = [[{"role": "user", "content": content}]]
    return processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")["input_ids"][0]


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "idefics3", "gemma3", "internvl", "pixtral"])
@pytest.mark.parametrize("prompt", [IMAGE, "{{ a }} {% b %} 'c' \"d\" \\n e\n{# f #} é 😀 %}"])
def test_it_reads_the_collators_tokens(family: str, prompt: str) -> None:
    model, processor = tiny(family)
    given = embedding(prompt, prompt)
    check_tokens(processor, asking(processor, given), family_of(model), given, {})


def test_several_images_belong_together(pictures: list[Any]) -> None:
    model, processor = tiny("qwen2_5_vl")
    given, family = embedding(), family_of(model)
    needs = Needs(features=(given.features["image"],))
    make = AlignCollator(processor, lambda _: needs, family.image_keys, family.token_keys)
    ours = make([{"images": pictures[:2], "prompt": "?"}])["batch"].prefixes[0].input_ids
    parts = [{"type": "image", "image": picture} for picture in pictures[:2]]
    assert torch.equal(ids(asking(processor, given), parts), ours)


def test_templates_that_read_texts() -> None:
    model, processor = tiny("llava")
    processor.chat_template = FLAT
    given = embedding()
    other = asking(processor, given)
    check_tokens(processor, other, family_of(model), given, {})
    chat = [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": "b"}]
    assert other.apply_chat_template(chat) == "user: a\nassistant: b\nassistant:"


def test_what_is_no_single_image_or_text_stays(pictures: list[Any]) -> None:
    _, processor = tiny("qwen2_5_vl")
    other = asking(processor, embedding())
    text, image = {"type": "text", "text": "Look."}, {"type": "image", "image": pictures[0]}
    for chat in (
        [{"role": "user", "content": [image, text]}],
        [{"role": "user", "content": "Look."}],
        [{"role": "system", "content": [text]}, {"role": "user", "content": [text]}],
        [{"role": role, "content": [text]} for role in ("user", "assistant", "user")],
    ):
        expected = processor.apply_chat_template(chat, add_generation_prompt=True)
        assert other.apply_chat_template(chat) == expected


def test_a_side_without_an_instruction_is_read_as_it_is(pictures: list[Any]) -> None:
    model, processor = tiny("qwen2_5_vl")
    given = embedding(image=None)
    other = asking(processor, given)
    check_tokens(processor, other, family_of(model), given, {})
    chat = [{"role": "user", "content": [{"type": "image", "image": pictures[0]}]}]
    assert other.apply_chat_template(chat) == processor.apply_chat_template(chat, add_generation_prompt=True)


def test_instructions_that_became_tokens() -> None:
    _, processor = tiny("llava")
    processor.tokenizer.add_tokens(["<p0>", "<p1>"], special_tokens=True)
    found = asking(processor, embedding(), {TEXT: "<p0><p1>"}).apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "a dog"}]}]
    )
    assert found == "USER: a dog\n<p0><p1> ASSISTANT:"


def test_other_tokens_are_refused() -> None:
    model, processor = tiny("llava")
    other = asking(processor, embedding())
    with pytest.raises(ValueError, match="LlavaProcessor makes other tokens of the text side than training reads"):
        check_tokens(processor, other, family_of(model), embedding(text="Something else?"), {})


def test_a_processor_without_a_template() -> None:
    _, processor = tiny("llava")
    processor.chat_template = processor.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="LlavaProcessor has no chat template"):
        asking_template(processor, embedding(), {})
