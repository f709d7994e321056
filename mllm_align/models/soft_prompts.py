"""Soft prompts: vectors that are learned in the place of a hand-written prompt's token embeddings.

Fine-tuning that turns a generative model into an encoder learns a prompt for images and another for texts, each begun
with the embeddings of a prompt in words (VladVA, Ouali et al., CVPR 2025, https://arxiv.org/abs/2412.04378). Here each
vector is the embedding of a token of its own, `<|soft:0:3|>` for vector 3 of prompt 0:

- Each has a place in the vocabulary, so all that reads token ids reads soft prompts. The embedding matrix grows only
  where it has no rows to spare.
- They train as PEFT's `trainable_token_indices`: saved in the adapter, off with it, and merged with it. With the
  adapter off each is the embedding that it began with, which is the prompt in words.
- They are read and never said: their logits are the lowest there are, also where the head shares its weights with the
  embeddings, and a generation's settings suppress them, which is what is left of that in an exported model.
- What says which prompt became which tokens is `soft_prompts.json`, beside adapter or model.

With PEFT alone, an adapter with soft prompts is put on its base so:

    facts = json.load(open("ADAPTER/soft_prompts.json"))
    tokenizer = AutoTokenizer.from_pretrained("ADAPTER")
    base = AutoModelForImageTextToText.from_pretrained("BASE")
    base.resize_token_embeddings(max(facts["embedding_rows"], base.get_input_embeddings().num_embeddings))
    model = PeftModel.from_pretrained(base, "ADAPTER")

and `"".join(facts["prompts"][0]["tokens"])` is what its first prompt is to be written as.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers.utils.hub import cached_file

from mllm_align.families import unwrap

FILE_NAME = "soft_prompts.json"
ATTRIBUTE = "soft_prompts"


@dataclass(frozen=True)
class SoftPrompt:
    """One prompt.

    Attributes:
        prompt: In words.
        tokens: That stand for it, one for each of its own tokens.
        begins_as: Ids of the tokens whose embeddings they begin with.
    """

    prompt: str
    tokens: tuple[str, ...]
    begins_as: tuple[int, ...]


@dataclass(frozen=True)
class SoftPrompts:
    """All soft prompts of a model.

    Attributes:
        prompts: In the order of their ids.
        first_id: Id of the first token; the others follow it.
        embedding_rows: Rows that the model's embedding matrix must have at the least.
        silent_until: The model never says what is from `first_id` up to here: these tokens, and what fills a matrix
            that had to grow up to a size that matrix units like.
        strips_space: Whether the last token of each takes up white space behind it, because the tokenizer puts one of
            its own there (LLaVA-1.5's does behind special tokens).
    """

    prompts: tuple[SoftPrompt, ...]
    first_id: int
    embedding_rows: int
    silent_until: int
    strips_space: bool

    @property
    def tokens(self) -> tuple[str, ...]:
        """Of all prompts."""
        return tuple(token for each in self.prompts for token in each.tokens)

    @property
    def ids(self) -> tuple[int, ...]:
        """Of all tokens."""
        return tuple(range(self.first_id, self.first_id + len(self.tokens)))

    @property
    def begins_as(self) -> tuple[int, ...]:
        """Of each token, the one whose embedding it begins with."""
        return tuple(source for each in self.prompts for source in each.begins_as)

    @property
    def replace(self) -> dict[str, str]:
        """What each prompt in words is to be written as."""
        return {each.prompt: "".join(each.tokens) for each in self.prompts}

    def merged(self) -> SoftPrompts:
        """The same for a model whose own embeddings they have become."""
        ids = iter(self.ids)
        prompts = (dataclasses.replace(each, begins_as=tuple(next(ids) for _ in each.tokens)) for each in self.prompts)
        return dataclasses.replace(self, prompts=tuple(prompts))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `soft_prompts.json`."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        (Path(folder) / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def soft_prompts_of(holder: Any) -> SoftPrompts | None:
    """The soft prompts of a model (wrapped or not) or of its processor; None where there are none."""
    return getattr(unwrap(holder), ATTRIBUTE, None)


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuses prompts that could not be told apart in a row.

    Raises:
        ValueError: If there is none, or one is no text, empty or given twice.
    """
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"soft prompts are a list of prompts in words, got {prompts!r}")
    for place, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"soft prompt {place} is {prompt!r}: write the prompt that it begins as")
        if prompt in prompts[:place]:
            raise ValueError(f"soft prompt {prompt!r} is there twice: images and texts that share one need it once")


def read_soft_prompts(folder: str | os.PathLike[str]) -> SoftPrompts | None:
    """What lies beside an adapter or a model, in a folder or on the Hub; None where there is nothing."""
    file: Any = Path(folder) / FILE_NAME
    if not Path(folder).is_dir():
        quietly = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        try:
            file = cached_file(os.fspath(folder), FILE_NAME, **quietly)
        except (OSError, ValueError):  # no name of a repository either: who loads the rest says so
            return None
    if file is None or not Path(file).is_file():
        return None
    facts = json.loads(Path(file).read_text(encoding="utf-8"))
    prompts = (SoftPrompt(p["prompt"], tuple(p["tokens"]), tuple(p["begins_as"])) for p in facts.pop("prompts"))
    return SoftPrompts(prompts=tuple(prompts), **facts)


def tell_processor(processor: Any, soft: SoftPrompts) -> None:
    """Adds the tokens of soft prompts to a processor, which knows the prompts from then on (`soft_prompts_of`).

    Raises:
        ValueError: If it knows others, or its tokenizer gives them other ids.
    """
    known = soft_prompts_of(processor)
    if known is not None and known != soft:
        raise ValueError(
            f"the processor has other soft prompts, for {', '.join(map(repr, known.replace))}: load one of its own "
            "for each model"
        )
    add_tokens(processor.tokenizer, soft)
    ids = processor.tokenizer.convert_tokens_to_ids(list(soft.tokens))
    if tuple(ids) != soft.ids:
        raise ValueError(
            f"the tokenizer gives token {soft.tokens[0]!r} the id {ids[0]}, the soft prompts were learned with "
            f"{soft.first_id}: load the base's own processor, without tokens of others"
        )
    setattr(processor, ATTRIBUTE, soft)


def add_tokens(tokenizer: Any, soft: SoftPrompts) -> None:
    """Adds the tokens of soft prompts to a tokenizer; those that it has stay as they are."""
    ends = {each.tokens[-1] for each in soft.prompts}
    tokenizer.add_tokens(
        [
            AddedToken(token, special=True, normalized=False, rstrip=soft.strips_space and token in ends)
            for token in soft.tokens
        ],
        special_tokens=True,
    )
