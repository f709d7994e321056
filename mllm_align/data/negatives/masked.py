"""Edits by a masked language model: one word hidden, what else it might be put in its place.

TSVLC's second way (Doveh et al., 2023, https://arxiv.org/abs/2211.11733), which tags with spaCy and takes any fill
that is another word; here lists say what kind a word is, and a fill of the same meaning ("puppy" for "dog") is passed
over as far as they know it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mllm_align.data.mine.words import content, kind_of
from mllm_align.data.negatives.counting import number_of
from mllm_align.data.negatives.lexicon import ATTRIBUTES, canonical, compatible, is_noun, is_plural, related
from mllm_align.data.negatives.making import Edit
from mllm_align.data.negatives.sentence import Sentence
from mllm_align.data.processes import processes

MASKED = "masked"
_WORD = re.compile("[a-z]+(?:-[a-z]+)*")
_BEGIN = ("\u0120", "\u2581")  # of a word, in pieces of bytes and of sentences
_ENDINGS = ("ing", "ed", "ly", "er", "est")


class MaskedModel:
    """Any masked language model of transformers.

    Args:
        model: Hub id or folder.
        device: Where to; the process's own of `accelerate` by default.
        top_k: Fills that are looked at, the likeliest ones.
        batch_size: Texts at a time.

    Raises:
        ValueError: If there is no such model, or its tokenizer has no mask.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        device: str | torch.device | None = None,
        top_k: int = 20,
        batch_size: int = 32,
    ) -> None:
        name = os.fspath(model)
        self.device = torch.device(device if device is not None else str(processes().device))
        self.top_k, self.batch_size = top_k, batch_size
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name)
            loaded: Any = AutoModelForMaskedLM.from_pretrained(name, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ValueError(f"there is no masked language model {name}: {str(error).splitlines()[0]}") from error
        if self.tokenizer.mask_token is None:
            raise ValueError(
                f"{name} has no mask token; name a masked language model, such as FacebookAI/roberta-base"
            )
        self._marks = any(piece.startswith(_BEGIN) for piece in self.tokenizer.get_vocab())
        self.model: Any = loaded.to(self.device).eval()
        positions = getattr(loaded.config, "max_position_embeddings", None) or 512
        # RoBERTa counts positions from beyond its padding.
        self._longest = min(self.tokenizer.model_max_length, positions - 2)
        commit = getattr(loaded.config, "_commit_hash", None)
        self.identity = f"{name}{f'@{commit}' if commit else ''}, top {top_k}"

    def edits(self, texts: Sequence[str], rngs: Sequence[Random], most: int) -> list[list[Edit]]:
        """Of each text up to `most` edits, each of another word, the words drawn by its `rng`.

        Of a text that is too long for the model, words beyond what it reads stay.
        """
        hidden: list[tuple[int, Sentence, int]] = []
        for number, (text, rng) in enumerate(zip(texts, rngs, strict=True)):
            sentence = Sentence(text)
            places = maskable(sentence)
            hidden += [(number, sentence, place) for place in rng.sample(places, min(len(places), 2 * most))]
        found: list[list[Edit]] = [[] for _ in texts]
        for start in range(0, len(hidden), self.batch_size):
            batch = hidden[start : start + self.batch_size]
            for (number, sentence, place), fills in zip(batch, self._fills(batch), strict=True):
                fill = next((fill for fill in fills if fits(sentence, place, fill)), None)
                if fill is not None and len(found[number]) < most:
                    found[number].append(Edit(sentence.replaced({(place, place): fill}), MASKED))
        return found

    @torch.no_grad()
    def _fills(self, batch: Sequence[tuple[int, Sentence, int]]) -> list[list[str]]:
        """The likeliest words for each hidden one, best first, those that are parts of words left out."""
        texts = [
            sentence.text[: sentence.spans[place][0]]
            + self.tokenizer.mask_token
            + sentence.text[sentence.spans[place][1] :]
            for _, sentence, place in batch
        ]
        rows = self.tokenizer(texts, truncation=True, max_length=self._longest)["input_ids"]
        inputs = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(self.device)
        logits = self.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        found = []
        for row, ids in enumerate(rows):
            where = [place for place, token in enumerate(ids) if token == self.tokenizer.mask_token_id]
            if len(where) != 1:  # cut off, or the text has a mask of its own
                found.append([])
                continue
            left = 0 if self.tokenizer.padding_side == "right" else inputs["input_ids"].shape[1] - len(ids)
            best = logits[row, left + where[0]].topk(min(self.top_k, logits.shape[-1])).indices.tolist()
            found.append([word for token in best if (word := self._whole_word(token))])
        return found

    def _whole_word(self, token: int) -> str:
        """A token as a word, "" for a part of one: WordPiece marks what goes on, other pieces mark what begins."""
        piece = self.tokenizer.convert_ids_to_tokens(token)
        if token in self.tokenizer.all_special_ids or piece.startswith("##"):
            return ""
        begins = piece.startswith(_BEGIN)
        return piece.lstrip("".join(_BEGIN)) if begins or not self._marks else ""


def maskable(sentence: Sentence) -> list[int]:
    """Words of content that are no names."""
    return [
        place
        for place, word in enumerate(sentence.words)
        if kind_of(word) is not None and not sentence.is_name(place) and len(word) > 2 and _WORD.fullmatch(word)
    ]


def fits(sentence: Sentence, place: int, fill: str) -> bool:
    """Whether a word may stand for another as an edit: of its kind and form, and of another meaning.

    Args:
        sentence: The text.
        place: Of the word that is replaced.
        fill: The other word.
    """
    word, other = sentence.words[place], fill.casefold()
    if not _WORD.fullmatch(other) or len(other) < 3 or content(word) == content(other):
        return False
    kind = ATTRIBUTES.get(word)
    if kind is not None and not (is_noun(word) and not sentence.is_colour(place)):
        return ATTRIBUTES.get(other) == kind and compatible(canonical(word), canonical(other), kind) is False
    if number_of(word) is not None:
        return number_of(other) is not None and number_of(other) != 1
    if kind_of(word) != kind_of(other) or other in ATTRIBUTES or kind_of(word) == "attribute":
        return False
    if is_noun(word):
        known = is_noun(other) and not related(canonical(word), canonical(other))
        return known and is_plural(word) == is_plural(other)
    forms = [next((end for end in (*_ENDINGS, "s") if each.endswith(end)), "") for each in (word, other)]
    return forms[0] == forms[1] and not is_noun(other)
