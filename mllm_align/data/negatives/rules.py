"""Edits of one word by closed lists: colour, size, material, state, action, object.

After the word lists of TSVLC (Doveh et al., 2023, https://arxiv.org/abs/2211.11733), with its lists of colours, sizes,
materials, states and actions; there a word is replaced wherever its letters stand ("red" in "hundred"), here whole
words in the place of what they describe. "Orange" is the fruit where nothing follows that it could describe.
"""

from __future__ import annotations

from mllm_align.data.mine.words import kind_of
from mllm_align.data.negatives.lexicon import (
    ATTRIBUTES,
    CHOICES,
    OPPOSITES,
    alternatives,
    canonical,
    is_noun,
    is_plural,
    plural,
    same_kind,
    singular,
    word_set,
)
from mllm_align.data.negatives.sentence import ARTICLES, BE, Sentence

Site = tuple[str, ...]  # the whole texts that one place of a text allows

# Names of things, not descriptions of them.
_FIXED = frozenset(
    (first, second)
    for first, seconds in {
        "orange": "juice slice slices peel tree trees soda",
        "white": "wine board house",
        "red": "wine cross",
        "green": "bean beans onion onions house tea salad",
        "black": "pepper board bean beans",
        "brown": "rice",
        "new": "york zealand year",
        "paper": "towel towels plane",
        "little": "bit more less",
        "long": "ago",
        "short": "cut",
        "open": "air",
    }.items()
    for second in seconds.split()
)
# Words behind which, or before which, these say something else ("three years old", "as long as", "full of").
_AFTER = {"old": ("year", "years", "month", "months"), "long": ("as", "so", "how", "for")}
_BEFORE = {"full": ("of",), "empty": ("of",), "long": ("as",)}
_PARTS_OF_NAMES = word_set("hot teddy polar sea guinea fire school toy stuffed model statue")


def colour(sentence: Sentence) -> list[Site]:
    """Another colour."""
    return _attribute(sentence, "colour")


def size(sentence: Sentence) -> list[Site]:
    """The opposite size."""
    return _attribute(sentence, "size")


def material(sentence: Sentence) -> list[Site]:
    """Another material."""
    return _attribute(sentence, "material")


def state(sentence: Sentence) -> list[Site]:
    """The opposite state: open and closed, wet and dry, old and new."""
    return _attribute(sentence, "state")


def action(sentence: Sentence) -> list[Site]:
    """Another posture or movement, where nothing is moved but who moves ("walking", not "walking a dog")."""
    found = []
    for place, word in enumerate(sentence.words):
        before, following = sentence.word(place - 1), sentence.word(place + 1)
        said_of = before in BE or (kind_of(before) == "object" if before else False)
        # "running shoes", "flying a kite"
        another = sentence.joined(place) and (
            following in (*ARTICLES, "the", "his", "her", "their", "its") or kind_of(following) == "object"
        )
        if word in CHOICES["action"] and said_of and sentence.joined(place - 1) and not another:
            found.append(_texts(sentence, place, alternatives(word, "action", "")))
    return found


def objects(sentence: Sentence) -> list[Site]:
    """Another thing of the same kind: a dog for a cat, a bus for a car; one of many for one of many."""
    found = []
    for place, word in enumerate(sentence.words):
        if not is_noun(word) or not is_whole_noun(sentence, place):
            continue
        names = same_kind(word)
        if names:
            found.append(_texts(sentence, place, tuple(map(plural, names)) if is_plural(word) else names))
    return found


def is_whole_noun(sentence: Sentence, place: int) -> bool:
    """Whether a noun is no part of a longer name ("bus stop", "teddy bear", "White House") and no attribute."""
    if sentence.is_name(place) or (sentence.words[place] == "orange" and sentence.is_colour(place)):
        return False
    before, following = sentence.word(place - 1), sentence.word(place + 1)
    if before and sentence.joined(place - 1):
        if before in _PARTS_OF_NAMES or (before, sentence.words[place]) in _FIXED:
            return False
        if kind_of(before) == "object" and before not in ATTRIBUTES and not before.endswith(("ing", "ed")):
            return False
    # A verb follows many a noun, another noun of the lists makes a name of both.
    another = is_noun(following) or following in ("stop", "juice", "field")
    return not (following and sentence.joined(place) and another)


def _attribute(sentence: Sentence, kind: str) -> list[Site]:
    given = CHOICES[kind] if kind in CHOICES else OPPOSITES[kind]
    found = []
    for place in attributes_of(sentence, kind):
        word = sentence.words[place]
        head = sentence.head(place)
        if head is None or (word not in given and kind not in CHOICES):
            continue
        noun = singular(sentence.words[head])
        found.append(_texts(sentence, place, alternatives(word, kind, noun)))
    return found


def attributes_of(sentence: Sentence, kind: str) -> list[int]:
    """Where words of one kind describe something."""
    return [
        place
        for place, word in enumerate(sentence.words)
        if ATTRIBUTES.get(word) == kind
        and sentence.is_colour(place)
        and not sentence.is_name(place)
        and (word, sentence.word(place + 1)) not in _FIXED
        and sentence.word(place - 1) not in _AFTER.get(word, ())
        and sentence.word(place + 1) not in _BEFORE.get(word, ())
        and sentence.head(place) is not None
    ]


def _texts(sentence: Sentence, place: int, words: tuple[str, ...]) -> Site:
    own = canonical(sentence.words[place])
    return tuple(sentence.replaced({(place, place): word}) for word in words if canonical(word) != own)
