"""The words of a text and what kind they are: what two answers have to differ in, and what can be masked.

Made for English, and for languages that put spaces between words; small closed lists, no model.
"""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["object", "attribute", "relation"]


def _set(words_of_it: str) -> frozenset[str]:
    return frozenset(words_of_it.split())


_WORD = re.compile("[^\\W_]+(?:['\u2019\\-][^\\W_]+)*")
_FUNCTION = _set(
    """
    a an the this that these those some any each every all both either neither another other others such own
    i you he she it we they me him her us them my your his its our their mine yours hers ours theirs
    myself yourself himself herself itself ourselves themselves one's someone something anyone anything everyone
    who whom whose which what when where why how whether
    be am is are was were been being have has had having do does did doing done will would shall should can could
    may might must isn't aren't wasn't weren't don't doesn't didn't won't wouldn't can't couldn't hasn't haven't
    it's that's there's he's she's they're we're you're i'm i've let's what's
    and or but nor so yet if because while although though as than then also too very just only even still rather
    quite there here of at by for with about to from in on into onto upon during through via per out up down off
    again once well however therefore thus please ok okay
    """
)
# Of the picture as such: "the image shows ..." says nothing of what is in it.
_FRAME = _set(
    """
    image images picture pictures photo photos photograph photographs scene view shot snapshot background foreground
    show shows shown showing see sees seen depict depicts depicted depicting feature features featuring appear
    appears appearing seem seems contain contains containing include includes including capture captures captured
    visible overall answer
    """
)
_NEGATION = _set(
    """
    no not none never without nothing nobody isn't aren't wasn't weren't don't doesn't didn't won't can't cannot
    """
)
_UP_TO_TWENTY = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty
"""
_NUMBERS = {word: str(number) for number, word in enumerate(_UP_TO_TWENTY.split())}
_ATTRIBUTES = _set(
    """
    red green blue yellow orange purple violet pink brown black white grey gray beige tan gold golden silver cyan
    magenta turquoise maroon navy teal cream colourful colorful transparent striped spotted checkered plain
    small large big little tiny huge giant tall short long wide narrow thick thin high low medium average
    several many few dozen dozens hundred hundreds pair single double multiple half
    round rectangular circular triangular oval curved straight flat sharp pointed
    old young new modern ancient open closed empty full wet dry dark bright light clear cloudy sunny rainy snowy
    clean dirty hot cold warm wooden metal metallic plastic stone brick leather furry fluffy smooth rough shiny
    happy sad angry calm busy quiet
    """
)
_RELATIONS = _set(
    """
    yes no left right above below under underneath beneath over behind beside between among near nearby next inside
    outside within around across along against towards toward opposite ahead top bottom front back upper lower
    middle center centre corner side edge far close closer farther further before after
    more less fewer most least same different similar equal larger smaller bigger taller shorter longer higher
    """
)
_YES, _NO = frozenset(("yes", "yeah", "yep")), frozenset(("no", "nope"))


def words(text: str) -> list[str]:
    """The words of a text in order, punctuation left out."""
    return _WORD.findall(text)


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where the words are: (start, end) of each."""
    return [match.span() for match in _WORD.finditer(text)]


def kind_of(word: str) -> Kind | None:
    """What a word speaks of; None for one that only holds a sentence together, or speaks of the picture as such.

    Yes and no are relations, as Re-Align masks logical relations. What no list knows is an object, verbs too.
    """
    plain = _plain(word)
    if plain in _RELATIONS:
        return "relation"
    if plain in _ATTRIBUTES or plain in _NUMBERS or plain.isdecimal():
        return "attribute"
    return None if plain in _FUNCTION or plain in _FRAME or plain in _NEGATION else "object"


def content(text: str) -> tuple[str, ...]:
    """What a text says, in order: its content words in a plain form, any negation as "not".

    Plain is: lower case, numbers as digits, without the endings of plurals and verbs.
    """
    found = []
    for word in words(text):
        plain = _plain(word)
        if plain in _NEGATION:
            found.append("not")
        elif kind_of(word) is not None:
            found.append(_NUMBERS.get(plain) or _stem(plain))
    return tuple(found)


def numbers(text: str) -> frozenset[str]:
    """The numbers of a text as digits, whether written so or in words up to twenty."""
    plain = [_plain(word) for word in words(text)]
    return frozenset(_NUMBERS.get(word, word) for word in plain if word in _NUMBERS or word.isdecimal())


def polarity(text: str) -> Literal["yes", "no"] | None:
    """Whether an answer begins with yes or no."""
    first = next((_plain(word) for word in words(text)), "")
    return "yes" if first in _YES else "no" if first in _NO else None


def _plain(word: str) -> str:
    return word.casefold().replace("\u2019", "'")


def _stem(word: str) -> str:
    """A word without its ending, as far as that is safe: the same stem for "dog" and "dogs", "ride" and "riding"."""
    word = word.removesuffix("'s")
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    for ending in ("ing", "ed", "es", "s"):
        stem = word.removesuffix(ending)
        if stem != word and len(stem) > 2 and not (ending == "s" and stem.endswith(("s", "u"))):
            # "running" and "run", "riding" and "ride".
            doubled = ending in ("ing", "ed") and stem[-1] == stem[-2] and stem[-1] not in "lsz"
            return (stem[:-1] if doubled else stem).removesuffix("e")
    return word.removesuffix("e") if len(word) > 3 else word
