"""What a text claims of a picture: things with their attributes, number and side, and where one is to another.

Read without a parser, by the lists: enough to compare a text with what is known of a picture, and two texts with each
other. What the lists do not know is not read.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from mllm_align.data.mine.words import kind_of
from mllm_align.data.negatives.counting import counts, noun_counted, number_of
from mllm_align.data.negatives.lexicon import ATTRIBUTES, canonical, is_noun, word_set
from mllm_align.data.negatives.relations import relation_at
from mllm_align.data.negatives.sentence import Sentence

_CONVERSE = {"right of": "left of", "below": "above", "in front of": "behind"}
_MUTUAL = frozenset(("next to", "near", "close to", "far from"))
_SAME = {
    "beside": "next to",
    "over": "above",
    "beneath": "under",
    "underneath": "under",
    "left": "left of",
    "right": "right of",
}
_SIDES = ("left", "right")
_LINKS = word_set("is are was were be to the directly just sitting standing lying placed located side of")


class Thing(NamedTuple):
    """Something that a text names.

    Attributes:
        noun: In a canonical form.
        attributes: As (kind, canonical word), sorted.
        number: How many there are said to be, or None.
        side: Of the picture: "left", "right" or "".
    """

    noun: str
    attributes: tuple[tuple[str, str], ...] = ()
    number: int | None = None
    side: str = ""


class Related(NamedTuple):
    """Two things and where the first is to the second: "left of", "above", "on", ..."""

    first: Thing
    relation: str
    second: Thing


Claim = Thing | Related


def claims(text: str) -> frozenset[Claim]:
    """All claims of a text that can be read."""
    sentence = Sentence(text)
    placed = things(sentence)
    found: set[Claim] = set(placed.values())
    places = sorted(placed)
    for one, other in pairwise(places):
        relation = _relation(sentence, one, other)
        if relation is not None:
            first, second = placed[one], placed[other]
            if relation in _MUTUAL:
                first, second = sorted((first, second), key=repr)
                found.add(Related(first, relation, second))
            elif relation in _CONVERSE:
                found.add(Related(second, _CONVERSE[relation], first))
            else:
                found.add(Related(first, relation, second))
    return frozenset(found)


def things(sentence: Sentence) -> dict[int, Thing]:
    """Things by the place of their noun."""
    attributes: dict[int, set[tuple[str, str]]] = {}
    numbers: dict[int, int] = {}
    for place, word in enumerate(sentence.words):
        kind = ATTRIBUTES.get(word)
        if kind is not None and kind != "action" and sentence.is_colour(place):
            head = sentence.head(place)
            if head is not None:
                attributes.setdefault(head, set()).add((kind, canonical(word)))
        number = number_of(word)
        if number is not None and counts(sentence, place):
            noun = noun_counted(sentence, place)
            if noun is not None:
                numbers[noun] = number
                attributes.setdefault(noun, set())
    for place, word in enumerate(sentence.words):
        if is_noun(word) and not (word == "orange" and sentence.is_colour(place)):
            attributes.setdefault(place, set())
    # Of a name of several words the last one says what it is.
    heads = {each for each in attributes if not (each + 1 in attributes and sentence.joined(each))}
    for each in sorted(set(attributes) - heads):
        attributes[each + 1] |= attributes[each]
    return {
        place: Thing(
            canonical(sentence.words[place]),
            tuple(sorted(attributes[place])),
            numbers.get(place),
            _side(sentence, place),
        )
        for place in sorted(heads)
    }


def _side(sentence: Sentence, place: int) -> str:
    """ "a cup on the left", at the end of a clause or before "side" or "of the picture"."""
    following = place + 1
    if sentence.word(following) in ("is", "are"):
        following += 1
    if sentence.word(following) not in ("on", "to", "at") or sentence.word(following + 1) != "the":
        return ""
    side = sentence.word(following + 2)
    if side not in _SIDES:
        return ""
    behind = following + (4 if sentence.word(following + 3) == "side" else 3)
    if sentence.word(behind) != "of" or not sentence.joined(behind - 1):
        return side
    return side if sentence.word(behind + 2) in ("picture", "image", "photo", "photograph", "scene") else ""


def _relation(sentence: Sentence, one: int, other: int) -> str | None:
    """What stands between two nouns and nothing but it, attributes and articles."""
    place, found = one + 1, None
    if any(sentence.between(each).strip() for each in range(one, other)):
        return None
    while place < other:
        word = sentence.words[place]
        key = relation_at(sentence, place) or ((word,) if word in ("on", "in") else None)
        if key is not None and found is None:
            found = " ".join(key)
            place += len(key)
            continue
        passed = word in _LINKS if found is None else True
        if not passed and kind_of(word) != "attribute":
            return None
        if found is not None and word in ("and", "or", "with"):
            return None
        place += 1
    if found in _SIDES and "of" not in sentence.words[one:other]:
        return None
    return _SAME.get(found, found) if found is not None else None
