"""Edits and paraphrases by a chat model that reads text alone, and the checks that its replies must pass.

What SVLC has from BLOOM and SugarCrepe from ChatGPT; the prompts are our own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from mllm_align.data.mine.pairs import plain
from mllm_align.data.mine.speaking import Ask, Speaker
from mllm_align.data.mine.words import content, numbers, words
from mllm_align.data.negatives.claims import claims
from mllm_align.data.negatives.lexicon import canonical
from mllm_align.data.negatives.making import Edit
from mllm_align.data.negatives.sentence import Sentence

CHAT = "chat"
MOST_CHANGED = 4  # words of an edit that its text has not
ASK_FOR_EDITS = (
    "Below is a text about a picture. Write {most} other versions of it, each wrong about the picture in one detail: "
    "a colour, a size, a number, an action, a relation or an object that is replaced by another that fits as well. "
    "Change as few words as possible, use no negation, and no words of the same meaning. Write each version on a line "
    "of its own, and nothing else.\n\nText: {text}"
)
ASK_FOR_PARAPHRASES = (
    "Below is a text about a picture. Write {most} other versions of it that mean exactly the same in other words: "
    "nothing added, nothing left out. Write each version on a line of its own, and nothing else.\n\nText: {text}"
)
_BULLET = re.compile(r"^\s*(?:(?:[-*\u2022]|\(?\d{1,2}[.):])\s+)?(?:(?:text|version)\s*\d*\s*:\s*)?", re.IGNORECASE)
_QUOTES = "\"'\u201c\u201d"
_TOKENS = 64


def spoken_edits(texts: Sequence[str], speaker: Speaker, most: int) -> list[list[Edit]]:
    """Of each text up to `most` edits that pass `is_edit`."""
    asks = [Ask(ASK_FOR_EDITS.format(text=text, most=most)) for text in texts]
    replies = speaker(asks, _TOKENS * most) if asks else []
    return [
        [Edit(line, CHAT) for line in _lines(reply) if is_edit(text, line)][:most]
        for text, reply in zip(texts, replies, strict=True)
    ]


def spoken_paraphrases(texts: Sequence[str], speaker: Speaker, most: int) -> list[list[str]]:
    """Of each text up to `most` others that pass `is_paraphrase`."""
    asks = [Ask(ASK_FOR_PARAPHRASES.format(text=text, most=most)) for text in texts]
    replies = speaker(asks, _TOKENS * most) if asks else []
    return [
        [line for line in _lines(reply) if is_paraphrase(text, line)][:most]
        for text, reply in zip(texts, replies, strict=True)
    ]


def is_edit(text: str, other: str) -> bool:
    """Whether a text is another with few words changed, that says something else and denies nothing.

    Words of one meaning, as far as the lists know them, count as one, and so does what is only left out.
    """
    before, after = _meaning(text), _meaning(other)
    if not after or before == after or "not" in set(after) - set(before):
        return False
    new, lost = Counter(after) - Counter(before), Counter(before) - Counter(after)
    if not new and (lost or claims(text) == claims(other)):
        return False
    return new.total() <= MOST_CHANGED and lost.total() <= MOST_CHANGED


def is_paraphrase(text: str, other: str) -> bool:
    """Whether a text is another in other words: the same numbers, the same denials, and the same claims of things.

    Nothing else is read, so this passes some that are none; a text whose claims cannot be read passes too.
    """
    if not plain(other) or plain(text) == plain(other):
        return False
    denied = ["not" in content(each) for each in (text, other)]
    return numbers(text) == numbers(other) and denied[0] == denied[1] and claims(text) == claims(other)


def _meaning(text: str) -> tuple[str, ...]:
    """Words of content in one form each, denials as "not"."""
    found = []
    for word in Sentence(text).words:
        said = content(word)
        found += said if said == ("not",) else [canonical(word)] if said else []
    return tuple(found)


def _lines(reply: str) -> Iterable[str]:
    for line in reply.splitlines():
        found = _BULLET.sub("", line, count=1).strip()
        if len(found) > 1 and found[0] in _QUOTES and found[-1] in _QUOTES:
            found = found[1:-1].strip()
        if words(found):
            yield " ".join(found.split())
