"""Soft prompts in a model: their tokens, their first embeddings, what trains them, and what keeps them unsaid."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn

from mllm_align.families import unwrap
from mllm_align.models.identity import keep_embeddings_probe
from mllm_align.models.soft_prompts import (
    ATTRIBUTE,
    FILE_NAME,
    SoftPrompt,
    SoftPrompts,
    add_tokens,
    check_prompts,
    read_soft_prompts,
    soft_prompts_of,
    tell_processor,
)

ROWS = 64  # a matrix that has to grow gets a multiple of these
# A prompt stands behind a line break, or behind an image, where tokenizers divide as behind one.
JOINT = "a\n"


def add_soft_prompts(model: Any, processor: Any, prompts: Sequence[str]) -> SoftPrompts:
    """Gives a model a soft prompt for each of some prompts in words; with these it reads the very same until trained.

    Tokenizer and model are changed in place. Nothing trains yet: `lora_config` and `AlignTrainer` see to that.

    Args:
        model: Without adapters.
        processor: Of the model.
        prompts: In words, each different.

    Returns:
        What was added, or what is there already for the same prompts.

    Raises:
        ValueError: If a prompt is empty, given twice or holds an image token, the model has adapters, or other soft
            prompts.
    """
    check_prompts(prompts)
    known = soft_prompts_of(processor)
    if known is not None and set(known.replace) == set(prompts):
        put_soft_prompts(model, processor, known)
        return known
    if known is not None:
        raise ValueError(
            f"the model has soft prompts already, for {', '.join(map(repr, known.replace))}: name the same, or begin "
            "with its base"
        )
    if isinstance(model, PeftModel):
        raise ValueError("soft prompts go below adapters: add them before the model gets any")
    image_token = getattr(processor, "image_token", None)
    wrong = next((prompt for prompt in prompts if image_token and image_token in prompt), None)
    if wrong is not None:
        raise ValueError(f"soft prompt {wrong!r} holds the image token: name the words behind it alone")
    tokenizer = processor.tokenizer
    found = []
    for place, prompt in enumerate(prompts):
        words = _ids_behind(tokenizer, JOINT, prompt)
        tokens = tuple(f"<|soft:{place}:{number}|>" for number in range(len(words)))
        found.append(SoftPrompt(prompt, tokens, tuple(words)))
    soft = SoftPrompts(tuple(found), 0, 0, 0, _adds_space(tokenizer))
    taken = tokenizer.get_vocab().keys() & set(soft.tokens)
    if taken:
        raise ValueError(f"the tokenizer has a token {min(taken)!r} already, and no {FILE_NAME} that says what it is")
    add_tokens(tokenizer, soft)
    first = tokenizer.convert_tokens_to_ids(soft.tokens[0])
    rows = unwrap(model).get_input_embeddings().weight.shape[0]
    needed = first + len(soft.tokens)
    silent = needed
    if needed > rows:
        rows = silent = -(-needed // ROWS) * ROWS
    soft = dataclasses.replace(soft, first_id=first, embedding_rows=rows, silent_until=silent)
    put_soft_prompts(model, processor, soft)
    return soft


def put_soft_prompts(model: Any, processor: Any, soft: SoftPrompts) -> None:
    """Puts soft prompts, with the embeddings that they begin with, into a model and its processor, in place.

    Raises:
        ValueError: If either has others, or the tokenizer gives the tokens other ids.
    """
    tell_processor(processor, soft)
    known = soft_prompts_of(model)
    if known is not None:
        if known != soft:
            raise ValueError(f"the model has other soft prompts already, for {', '.join(map(repr, known.replace))}")
        return
    hf = unwrap(model)
    keep_embeddings_probe(hf)
    _grow(hf, soft.embedding_rows)
    with torch.no_grad():
        weight = hf.get_input_embeddings().weight
        weight[list(soft.ids)] = weight[list(soft.begins_as)]
    hf.get_output_embeddings().register_forward_hook(partial(_never_said, soft.first_id, soft.silent_until))
    settings = getattr(hf, "generation_config", None)
    if settings is not None:
        silent = range(soft.first_id, soft.silent_until)
        settings.suppress_tokens = sorted({*(settings.suppress_tokens or ()), *silent})
    setattr(hf, ATTRIBUTE, soft)


def check_adapter(model: Any, folder: str) -> None:
    """Refuses an adapter whose soft prompts a model does not have, or that PEFT cannot load beside soft prompts.

    Args:
        model: That is to get the adapter.
        folder: Of the adapter, or its Hub id.

    Raises:
        ValueError: With the mend.
    """
    soft = read_soft_prompts(folder)
    if soft is not None and soft != soft_prompts_of(model):
        raise ValueError(
            f"the adapter in {folder!r} was trained with soft prompts, for {', '.join(map(repr, soft.replace))}, "
            "which this model does not have: load_model(base, adapter) adds them first"
        )
    if soft is None and isinstance(unwrap(model).get_input_embeddings(), TrainableTokensWrapper):
        raise ValueError(
            f"the adapter in {folder!r} has no soft prompts, and PEFT loads none such on top of one that has: load it "
            "first"
        )


def train_soft_prompts(model: Any, config: Any) -> None:
    """Lets the soft prompts of a model train with an adapter that it is to get, in place.

    Args:
        model: That gets the adapter; one without soft prompts changes nothing.
        config: Of the adapter. Trainable tokens that it names already stay as they are.

    Raises:
        ValueError: If its kind of adapter has no trainable tokens.
    """
    soft = soft_prompts_of(model)
    if soft is None:
        return
    if not hasattr(config, "trainable_token_indices"):
        raise ValueError(
            f"soft prompts cannot train with a {type(config).__name__}, which has no trainable_token_indices: use a "
            "LoraConfig"
        )
    if config.trainable_token_indices is None:
        config.trainable_token_indices = list(soft.ids)


def part_from_head(model: Any) -> None:
    """Lets the head of a model with adapters use its own weights alone, where PEFT tied it to the soft prompts.

    What is only read needs no logits, and the tie would copy the whole matrix for every chunk of them.
    """
    hf = unwrap(model)
    head = hf.get_output_embeddings()
    if soft_prompts_of(model) is not None and isinstance(head, TrainableTokensWrapper):
        hf.set_output_embeddings(head.original_module)


def _never_said(first: int, end: int, head: nn.Module, given: Any, logits: Tensor) -> Tensor:
    logits[..., first:end] = torch.finfo(logits.dtype).min
    return logits


def _grow(hf: Any, rows: int) -> None:
    before = hf.get_input_embeddings().weight.shape[0]
    if rows <= before:
        return
    head = hf.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.weight.shape != hf.get_input_embeddings().weight.shape:
        raise ValueError(
            f"soft prompts need {rows} rows of embeddings where there are {before}, and a head that is a "
            f"{type(head).__name__} cannot grow: load the model with load_model, which leaves the head in full "
            "precision"
        )
    hf.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for module in (hf.get_input_embeddings(), hf.get_output_embeddings()):
            module.weight[before:] = 0


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, truncation=False, padding=False)["input_ids"]


def _ids_behind(tokenizer: Any, joint: str, text: str) -> list[int]:
    """The ids of a text behind another; by itself where a token would span both."""
    before, whole = _ids(tokenizer, joint), _ids(tokenizer, joint + text)
    return whole[len(before) :] if whole[: len(before)] == before else _ids(tokenizer, text)


def _adds_space(tokenizer: Any) -> bool:
    """Whether a tokenizer puts a space of its own behind a special token, where another would be one too many."""
    special, word = tokenizer.eos_token, "a"
    if special is None:
        return False
    wanted = _ids_behind(tokenizer, word, f" {word}")
    with_space, without = (_ids_behind(tokenizer, special, text) for text in (f" {word}", word))
    return with_space != wanted and without == wanted
