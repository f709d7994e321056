"""Fuller sentences for both texts of a pair by a chat model, in two stages, with their one difference kept.

MVC rewrites the short captions of its sources in two stages (Wu et al. 2025, appendix C; their prompts are not
published with the code, so these are our own). Here the first stage writes out `chosen`, and the second edits that
very text until it says what `rejected` says: so the two texts differ where the pair differs and nowhere else. What
fails a check keeps its own texts.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from mllm_align.data.blocks import PROBLEM, BlockJob
from mllm_align.data.mine.pairs import plain
from mllm_align.data.mine.selection import GIVEN, Candidate
from mllm_align.data.mine.speaking import Ask, Speaker

FIRST_STAGE = (
    "Below are a question about a picture and a short answer. Write the answer out in one or two natural sentences, "
    "as a helpful assistant would give it. Say nothing that the short answer does not say, and keep its words "
    "{key}. Reply with the new answer only.\n\nQuestion: {prompt}\nShort answer: {chosen}"
)
SECOND_STAGE = (
    "Below is a sentence about one picture, and a fact about another picture that is almost the same. Edit the "
    "sentence so that it states the fact instead, and change as few words as possible: everything that the fact does "
    "not concern stays word for word. The new sentence has the words {key}. Reply with the edited sentence only.\n\n"
    "Sentence: {sentence}\nFact: {rejected}"
)
MOST_WORDS = 80

_SCHEMA = pa.schema([("row", pa.int64()), ("chosen", pa.string()), ("rejected", pa.string())])
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_QUOTES = "\"'\u201c\u201d"
_LEAD = re.compile(r"^\s*(?:(?:new|short|edited)?\s*(?:answer|sentence)\s*:)?\s*", re.IGNORECASE)
# Words that follow from others ("a cup", "two cups are"), so that they may differ where the fact differs.
_FORM = frozenset(("a", "an", "the", "this", "that", "there", "it", "its", "they", "them"))
_FORM |= {"is", "are", "was", "were", "am", "be", "been", "do", "does", "did", "has", "have"}


def rewritten(
    candidates: Sequence[Candidate],
    speaker: Speaker,
    folder: str | os.PathLike[str],
    *,
    max_new_tokens: int = 128,
    block_size: int = 64,
    progress: bool = True,
) -> tuple[list[Candidate], Counter[str]]:
    """The candidates with fuller texts, resumable. A collective: every process must call it.

    Args:
        candidates: Pairs.
        speaker: The chat model.
        folder: Where jobs are kept; each set of pairs and texts has one of its own in it.
        max_new_tokens: Of an answer.
        block_size: Pairs of a block.
        progress: Whether to show a bar.

    Returns:
        As many candidates in the same order, and how many were rewritten or why they were not.

    Raises:
        ValueError: If the speaker refuses, for example because nothing answers at its address.
    """
    given = [(item.prompt, item.chosen, item.rejected) for item in candidates]
    digest = hashlib.blake2b(repr((speaker.identity, max_new_tokens, block_size, given)).encode(), digest_size=8)
    settings = {"speaker": speaker.identity, "prompts": [FIRST_STAGE, SECOND_STAGE], "max_new_tokens": max_new_tokens}
    place = Path(folder) / f"rewriting-{digest.hexdigest()}"
    job = BlockJob(place, settings, len(candidates), _SCHEMA, block_size)
    job.run(
        lambda numbers: _rewrite([(n, candidates[n]) for n in numbers], speaker, max_new_tokens),
        "rewriting texts",
        progress=progress,
    )
    outcome: Counter[str] = Counter()
    found = []
    for candidate, record in zip(candidates, job.records(), strict=True):
        outcome[record[PROBLEM] or "rewritten"] += 1
        if record[PROBLEM] is None:
            by = speaker.identity if candidate.texts_by == GIVEN else f"{candidate.texts_by}, {speaker.identity}"
            candidate = replace(candidate, chosen=record["chosen"], rejected=record["rejected"], texts_by=by)
        found.append(candidate)
    return found, outcome


def fault(chosen: str, rejected: str, first: str, second: str) -> str | None:
    """What is wrong with a rewrite; None where both texts keep their key words and differ by nothing else.

    Args:
        chosen: The text that was to be written out.
        rejected: The other one.
        first: `chosen` rewritten.
        second: `rejected` rewritten.
    """
    if not first.strip() or not second.strip():
        return "empty"
    if max(len(_words(first)), len(_words(second))) > MOST_WORDS:
        return "too long"
    if plain(first) == plain(second):
        return "same texts"
    own, other = Counter(_words(chosen)), Counter(_words(rejected))
    new_own, new_other = Counter(_words(first)), Counter(_words(second))
    if set(own - other) - set(new_own) or set(other - own) - set(new_other):
        return "lost key words"
    foreign = (set(other) - set(own)) & set(new_own) | (set(own) - set(other)) & set(new_other)
    if foreign - _FORM:
        return "key words of the other text"
    if len(_words(first)) < len(_words(chosen)):
        return "shorter"
    change = set(new_own - new_other) | set(new_other - new_own)
    if change - set(own - other) - set(other - own) - _FORM:
        return "another difference"
    return None


def _rewrite(items: Sequence[tuple[int, Candidate]], speaker: Speaker, max_new_tokens: int) -> list[dict[str, Any]]:
    own = [_key_words(item.chosen, item.rejected) for _, item in items]
    asks = [
        Ask(FIRST_STAGE.format(key=key, prompt=item.prompt, chosen=item.chosen))
        for key, (_, item) in zip(own, items, strict=True)
    ]
    firsts = [_cleaned(answer) for answer in speaker(asks, max_new_tokens)]
    other = [_key_words(item.rejected, item.chosen) for _, item in items]
    asks = [
        Ask(SECOND_STAGE.format(key=key, sentence=first, rejected=_fact(item)))
        for key, first, (_, item) in zip(other, firsts, items, strict=True)
    ]
    seconds = [_cleaned(answer) for answer in speaker(asks, max_new_tokens)]
    return [
        {"row": number, "chosen": first, "rejected": second, PROBLEM: _fault(item, first, second)}
        for (number, item), first, second in zip(items, firsts, seconds, strict=True)
    ]


def _fault(item: Candidate, first: str, second: str) -> str | None:
    return fault(item.chosen, item.rejected, first, second)


def _fact(item: Candidate) -> str:
    """An answer of a word or two says nothing without its question."""
    return item.rejected if len(_words(item.rejected)) > 3 else f"{item.rejected} (asked: {item.prompt})"


def _key_words(text: str, other: str) -> str:
    words = Counter(_words(text)) - Counter(_words(other))
    return ", ".join(f'"{word}"' for word in words) or f'"{text}"'


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _cleaned(answer: str) -> str:
    """An answer without the label or the quotation marks that models like to put around it."""
    text = _LEAD.sub("", answer, count=1).strip()
    if len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES:
        text = text[1:-1].strip()
    return " ".join(text.split())
