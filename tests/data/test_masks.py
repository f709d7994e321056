"""Where the response is: by hand for each template, and by properties over random texts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat import TEMPLATES, TOKENIZERS, make_processor, make_tokenizer
from mllm_align.data.errors import DataError
from mllm_align.data.masks import ChatRenderer, leading_ids, plain_ids, render, response_ids
from tiny import tiny


def ask(text: str = "What is it?", images: int = 1, system: str | None = None) -> list:
    messages = [{"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}]
    if system:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return messages


EXPECTED = {
    "llava": ("USER: <image>\nWhat is it? ASSISTANT:", " It is red.</s>"),
    "vicuna": ("A chat. USER: <image>\nWhat is it? ASSISTANT:", " It is red.</s>"),
    "chatml": ("<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n", "It is red.<|im_end|>"),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<image>What is it?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "It is red.<|eot_id|>",
    ),
    # The template wrote the think block, not the data: it is context.
    "qwen3": (
        "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "It is red.<|im_end|>",
    ),
    "mistral": ("<s>[INST] <image>\nWhat is it? [/INST]", " It is red.</s>"),
    "opens_thinking": (
        "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n",
        "It is red.<|im_end|>",
    ),
    "strings": ("<|im_start|>user\n<image>What is it?<|im_end|>\n<|im_start|>assistant\n", "It is red.<|im_end|>"),
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_prefix_and_response_of_each_template(template: str) -> None:
    assert render(make_processor(template), ask(), "It is red.", 1) == EXPECTED[template]


@pytest.mark.parametrize("template", TEMPLATES)
def test_without_images_nothing_stands_for_one(template: str) -> None:
    prefix, response = render(make_processor(template), ask(images=0), "It is red.", 0)
    assert prefix == EXPECTED[template][0].replace("<image>\n", "").replace("<image>", "")
    assert response == EXPECTED[template][1]


@pytest.mark.parametrize(
    "response", ["a", "b", "abc", "cab", "user", "assistant", "ASSISTANT:", "What is it?", "</think>"]
)
@pytest.mark.parametrize("template", TEMPLATES)
def test_texts_that_would_mislead_a_search(template: str, response: str) -> None:
    prefix, scored = render(make_processor(template), ask(), response, 1)
    assert (prefix, scored) == (EXPECTED[template][0], EXPECTED[template][1].replace("It is red.", response))


def test_only_the_last_turn_is_the_response() -> None:
    turns = [*ask("First?"), {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}, *ask("Second?", 0)]
    prefix, scored = render(make_processor("qwen3"), turns, "Yes.", 1)
    assert prefix.count("Yes.") == 1
    assert scored == "Yes.<|im_end|>"


def test_white_space_is_that_of_the_generation_prompt() -> None:
    _, processor = tiny("llava_onevision")
    written = processor.apply_chat_template([*ask(), {"role": "assistant", "content": ask("red", 0)[0]["content"]}])
    assert written.endswith("<|im_start|>assistant \nred<|im_end|>")
    start = processor.apply_chat_template(ask(), add_generation_prompt=True)
    assert start.endswith("<|im_start|>assistant\n")
    for response in ("red", "a", "assistant", "<|im_start|>assistant"):
        assert render(processor, ask(), response, 1) == (start, f"{response}<|im_end|>")


def test_an_own_think_block_of_the_response_is_scored() -> None:
    _, scored = render(make_processor("chatml"), ask(), "<think>\nhm\n</think>\nred", 1)
    assert scored == "<think>\nhm\n</think>\nred<|im_end|>"


def test_eos_comes_once() -> None:
    assert render(make_processor("llava"), ask(), "red</s>", 1)[1] == " red</s>"
    assert render(make_processor(None), ask(), "red", 1) == ("<image>What is it?", "red</s>")


def test_no_template_takes_one_plain_turn() -> None:
    with pytest.raises(DataError, match="no chat template"):
        render(make_processor(None), ask(system="Be brief."), "red", 1)


def test_a_refusing_template_names_the_roles() -> None:
    with pytest.raises(DataError, match=r"system, user.*Only user and assistant"):
        render(make_processor("mistral"), ask(system="Be brief."), "red", 1)


def test_image_tokens_must_be_as_many_as_images() -> None:
    with pytest.raises(DataError, match=r"2 image token\(s\) '<image>' for 1 image"):
        render(make_processor("llava"), ask("Is <image> a word?"), "red", 1)
    with pytest.raises(DataError, match="response holds the image token"):
        render(make_processor("llava"), ask(), "an <image> here", 1)
    deaf = make_processor("llava")
    deaf.chat_template = "{% for message in messages %}{{ message.content[-1].text }}{% endfor %}"
    with pytest.raises(DataError, match="0 image token"):
        render(deaf, ask(), "red", 1)


def test_a_template_that_drops_the_answer_is_refused() -> None:
    processor = make_processor("llava")
    processor.chat_template = "{% for m in messages if m.role == 'user' %}{{ m.content[-1].text }}{% endfor %}"
    with pytest.raises(DataError, match="renders nothing of the response"):
        render(processor, ask(images=0), "red", 0)


def test_template_of_the_tokenizer_is_used_where_the_processor_has_none() -> None:
    processor = make_processor(None)
    processor.tokenizer.chat_template = TEMPLATES["chatml"]
    try:
        assert render(processor, ask(), "It is red.", 1) == EXPECTED["chatml"]
    finally:
        processor.tokenizer.chat_template = None


def test_a_tokenizer_without_eos_is_refused() -> None:
    processor = make_processor("llava")
    eos = processor.tokenizer.eos_token
    processor.tokenizer.eos_token = None
    try:
        with pytest.raises(ValueError, match="no EOS token"):
            ChatRenderer(processor)
    finally:
        processor.tokenizer.eos_token = eos


# -- tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_scored_tokens_are_the_tail_of_the_whole_conversation(template: str, kind: str) -> None:
    processor = make_processor(template, kind)
    prefix, response = render(processor, ask(), "It is red.", 1)
    before, scored = plain_ids(processor.tokenizer, prefix), response_ids(processor.tokenizer, prefix, response)
    assert before + scored == plain_ids(processor.tokenizer, prefix + response)
    end = {"chatml": "<|im_end|>", "qwen3": "<|im_end|>", "opens_thinking": "<|im_end|>", "strings": "<|im_end|>"}
    token = end.get(template, "<|eot_id|>" if template == "llama3" else "</s>")
    assert scored[-1] == processor.tokenizer.convert_tokens_to_ids(token)
    assert scored.count(scored[-1]) == 1


def test_eos_is_scored_although_it_is_the_pad_token() -> None:
    processor = make_processor("llava")
    assert processor.tokenizer.pad_token_id == processor.tokenizer.eos_token_id
    prefix, response = render(processor, ask(), "red", 1)
    assert response_ids(processor.tokenizer, prefix, response)[-1] == processor.tokenizer.eos_token_id


@pytest.mark.parametrize("kind", ["byte_bpe", "metaspace"])
def test_a_token_across_the_border_is_not_used(kind: str) -> None:
    tokenizer = make_tokenizer(kind)
    text = "Describe the image. A small white square is left of a star."
    crossed = 0
    for cut in range(1, len(text)):
        prefix, response = text[:cut], text[cut:]
        before = plain_ids(tokenizer, prefix)
        crossed += plain_ids(tokenizer, text)[: len(before)] != before
        assert tokenizer.decode(before + response_ids(tokenizer, prefix, response)).replace("  ", " ") == text
    assert crossed > 5


@given(
    prefix=st.text("aeit .?\n", min_size=1, max_size=12),
    response=st.text("aeit .?\n", min_size=1, max_size=12).filter(str.strip),
)
@settings(max_examples=150, deadline=None)
def test_prefix_and_response_decode_to_what_was_written(prefix: str, response: str) -> None:
    tokenizer = make_tokenizer("byte_bpe")
    ids = plain_ids(tokenizer, prefix) + response_ids(tokenizer, prefix, response)
    assert tokenizer.decode(ids) == prefix + response


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("adds_eos", [False, True])
def test_bos_comes_once_and_eos_never_ends_a_prefix(kind: str, adds_eos: bool) -> None:
    tokenizer = make_tokenizer(kind, adds_eos)
    assert leading_ids(tokenizer, "What is it?") == [tokenizer.bos_token_id]
    assert leading_ids(tokenizer, "<s>What is it?") == []
