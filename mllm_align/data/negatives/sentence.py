"""A text cut into words, and words put in the place of others: whole words only, case and punctuation kept."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mllm_align.data.mine.words import kind_of, word_spans
from mllm_align.data.negatives.lexicon import ATTRIBUTES, is_noun, word_set

_SENTENCE_END = re.compile(r"[.!?:\"\u201c(]\s*$|^\s*$|\n\s*$")
BE = word_set("is are was were be looks look appears appear seems painted coloured colored")
_DEGREE = word_set("very all mostly quite really bright dark light fully completely")
ARTICLES = frozenset(("a", "an"))
# Letters do not tell how these begin when they are said.
_SAID_WITH_VOWEL = ("hour", "honest", "heir")
_SAID_WITHOUT = ("uni", "use", "euro", "one", "once", "ufo", "unicorn")
# What two attributes of one noun may have between them.
_JOINS = frozenset(("and", "or"))


class Sentence:
    """The words of an English text.

    Args:
        text: Any.

    Attributes:
        text: The same.
        spans: Where its words are.
        words: Its words in lower case.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.spans = word_spans(text)
        self.words = [text[start:end].casefold().replace("\u2019", "'") for start, end in self.spans]

    def __len__(self) -> int:
        return len(self.words)

    def word(self, place: int) -> str:
        """A word in lower case, "" where there is none."""
        return self.words[place] if 0 <= place < len(self.words) else ""

    def between(self, place: int) -> str:
        """What stands between a word and the next one; a full stop at the ends of the text."""
        if not 0 <= place < len(self.words) - 1:
            return "."
        return self.text[self.spans[place][1] : self.spans[place + 1][0]]

    def joined(self, place: int) -> bool:
        """Whether white space alone is between a word and the next one."""
        return self.between(place).isspace()

    def is_name(self, place: int) -> bool:
        """Whether a word begins with a capital amid a sentence ("the White House")."""
        start, end = self.spans[place]
        written = self.text[start:end]
        return written[0].isupper() and not written.isupper() and not _SENTENCE_END.search(self.text[:start])

    def head(self, place: int) -> int | None:
        """The place of the noun that an attribute is said of; None where there is none.

        Behind it ("red and blue cup"), the last word of a run that the lists know, else the first; or before a form
        of "be" ("the cup is red").
        """
        next_one = place + 1
        while next_one < len(self) and self._passes(next_one):
            next_one += 1
        run = []
        while next_one < len(self) and kind_of(self.words[next_one]) == "object":
            attached = self.joined(next_one - 1) or (not run and self.between(next_one - 1).strip() == ",")
            if not attached or (self.words[next_one] in ATTRIBUTES and not is_noun(self.words[next_one])):
                break
            run.append(next_one)
            next_one += 1
        if run:
            known = [each for each in run if is_noun(self.words[each])]
            return known[-1] if known else run[0]
        return self._subject(place)

    def _passes(self, place: int) -> bool:
        """Whether an attribute before this place may be said of something behind it."""
        if not (self.joined(place - 1) or self.between(place - 1).strip() == ","):
            return False
        word = self.words[place]
        if word == "orange":
            return self.is_colour(place)
        if word in _JOINS:
            return self.word(place + 1) in ATTRIBUTES and self.joined(place)
        return word in ATTRIBUTES or kind_of(word) == "attribute"

    def _subject(self, place: int) -> int | None:
        before = place - 1
        while before > 0 and self.words[before] in _DEGREE:
            before -= 1
        if before < 1 or self.words[before] not in BE or not self.joined(before - 1):
            return None
        return before - 1 if kind_of(self.words[before - 1]) == "object" else None

    def is_colour(self, place: int) -> bool:
        """Whether "orange" is the colour: before something, or behind a form of "be". Another word is what it is."""
        if self.words[place] != "orange":
            return True
        if self.word(place - 1) in BE:
            return True
        following = self.word(place + 1)
        return self.joined(place) and bool(following) and kind_of(following) in ("object", "attribute")

    def replaced(self, changes: Mapping[tuple[int, int], str]) -> str:
        """The text with other words; of a, an and capitals those that fit.

        Args:
            changes: From `(first, last)` place to what stands there instead; none over another.
        """
        pieces, begin = [], 0
        for (first, last), new in sorted(changes.items()):
            start, end = self.spans[first][0], self.spans[last][1]
            fitted = _like(self.text[start : self.spans[first][1]], new)
            if first and self.words[first - 1] in ARTICLES and self.joined(first - 1):
                article = self.spans[first - 1]
                written = self.text[slice(*article)]
                pieces += [self.text[begin : article[0]], _like(written, article_of(new))]
                begin = article[1]
            pieces += [self.text[begin:start], fitted]
            begin = end
        return "".join([*pieces, self.text[begin:]])


def article_of(word: str) -> str:
    """ "a" or "an", by how a word begins when it is said."""
    plain = word.casefold()
    if plain.startswith(_SAID_WITH_VOWEL):
        return "an"
    return "an" if plain[:1] in set("aeiou") and not plain.startswith(_SAID_WITHOUT) else "a"


def _like(written: str, new: str) -> str:
    """A word in the case of the one that it replaces."""
    if len(written) > 1 and written.isupper():
        return new.upper()
    return new[:1].upper() + new[1:] if written[:1].isupper() else new
