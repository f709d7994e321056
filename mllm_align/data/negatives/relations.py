"""Edits of relations: left and right, above and below, in front of and behind, inside and outside, on and under."""

from __future__ import annotations

from collections.abc import Mapping

from mllm_align.data.negatives.lexicon import OBJECTS, canonical, word_set
from mllm_align.data.negatives.rules import Site
from mllm_align.data.negatives.sentence import Sentence

# Longer ones first: of "on top of" nothing else is read.
OPPOSITE: Mapping[tuple[str, ...], tuple[str, ...]] = {
    tuple(one.split()): tuple(each.strip() for each in other.split("|"))
    for one, other in {
        "in front of": "behind",
        "on top of": "under",
        "out of": "into",
        "far from": "close to",
        "close to": "far from",
        "next to": "far from",
        "behind": "in front of",
        "above": "below",
        "below": "above",
        "over": "under",
        "under": "on top of | above",
        "underneath": "on top of | above",
        "beneath": "on top of | above",
        "inside": "outside",
        "outside": "inside",
        "into": "out of",
        "beside": "far from",
        "near": "far from",
        "left": "right",
        "right": "left",
        "top": "bottom",
        "bottom": "top",
        "on": "under",
    }.items()
}
_LONGEST = max(map(len, OPPOSITE))
_PLACES = word_set(
    "of side hand half corner edge part end arm leg foot ear eye wall lane wing shoulder border section"
)
_BEFORE_PLACES = word_set("the far lower upper top bottom middle his her its their")
_DETERMINERS = word_set("a an the his her its their this that some two three")
# What something may be under as well as on.
_SUPPORTS = word_set("table chair bench bed couch desk shelf tree bridge umbrella counter stool plate")


def relation(sentence: Sentence) -> list[Site]:
    """The opposite relation, where a word says where something is ("left of", not "has left")."""
    found = []
    place = 0
    while place < len(sentence):
        key = relation_at(sentence, place)
        if key is None:
            place += 1
            continue
        last = place + len(key) - 1
        if not sentence.is_name(place):
            found.append(tuple(sentence.replaced({(place, last): other}) for other in OPPOSITE[key]))
        place = last + 1
    return found


def relation_at(sentence: Sentence, place: int) -> tuple[str, ...] | None:
    """The relation that begins at a place, as a key of `OPPOSITE`; None where there is none."""
    for length in range(_LONGEST, 0, -1):
        key = tuple(sentence.words[place : place + length])
        if len(key) == length and key in OPPOSITE and all(map(sentence.joined, range(place, place + length - 1))):
            return key if length > 1 or _is_place(sentence, place) else None
    return None


def _is_place(sentence: Sentence, place: int) -> bool:
    word, before, following = sentence.words[place], sentence.word(place - 1), sentence.word(place + 1)
    follows = sentence.joined(place)
    if word in ("left", "right", "top", "bottom"):
        if follows and following in _PLACES:
            # "shirt left of": who left what is not said so.
            return word in ("left", "right") or before in _BEFORE_PLACES
        # "on the left", at the end of what is said or before a function word; not "the right answer".
        ends = not follows or following in ("and", "is", "are", "in", "with", "while", "a", "an", "the", "there")
        return before == "the" and sentence.joined(place - 1) and ends and word in ("left", "right")
    if not follows or (following not in _DETERMINERS and word in ("on", "over", "outside", "inside", "under", "near")):
        return False
    if word == "on":
        return any(
            canonical(sentence.word(place + step)) in _SUPPORTS
            and all(canonical(sentence.word(place + other)) not in _NOUNS for other in range(2, step))
            for step in (2, 3)
        )
    return before not in ("all", "from", "just", "well", "left", "right") or word in ("behind",)


_NOUNS = frozenset(word for group in OBJECTS for word in group)
