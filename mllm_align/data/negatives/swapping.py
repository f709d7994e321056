"""Edits that exchange two words of one kind in a text, as SugarCrepe's swaps (Hsieh et al., 2023, arXiv 2306.14610).

What comes out may say the same ("a dog and a cat", "a red cup and a blue cup"): a swap counts only where the claims of
the text, whatever their order, are others.
"""

from __future__ import annotations

from itertools import combinations, pairwise

from mllm_align.data.negatives.claims import claims, things
from mllm_align.data.negatives.lexicon import canonical, is_noun, is_plural, related, word_set
from mllm_align.data.negatives.relations import relation_at
from mllm_align.data.negatives.rules import Site, attributes_of, is_whole_noun
from mllm_align.data.negatives.sentence import Sentence

# What the first does to the second, and the second not to the first.
_ONE_WAY = word_set(
    "riding holding chasing carrying eating wearing pulling pushing feeding catching kicking throwing on in"
)
_JOINED = frozenset(("and", "or", "while", "with"))
_MUTUAL = ("next to", "beside", "near", "close to", "far from")


def swap(sentence: Sentence) -> list[Site]:
    """Two colours, sizes, materials, states or sides, or two nouns, in each other's place."""
    before = claims(sentence.text)
    found = []
    for kind in ("colour", "size", "material", "state"):
        for one, other in combinations(attributes_of(sentence, kind), 2):
            words = sentence.words[one], sentence.words[other]
            if canonical(words[0]) != canonical(words[1]) and sentence.head(one) != sentence.head(other):
                found.append((_exchanged(sentence, one, other),))
    for one, other in combinations(_sides(sentence), 2):
        if sentence.words[one] != sentence.words[other]:
            found.append((_exchanged(sentence, one, other),))
    nouns = [n for n, word in enumerate(sentence.words) if is_noun(word) and is_whole_noun(sentence, n)]
    for one, other in combinations(nouns, 2):
        if _may_be_exchanged(sentence, one, other):
            found.append((_exchanged(sentence, one, other),))
    found = [site for site in dict.fromkeys(found) if site[0] != sentence.text]
    return [site for site in found if claims(site[0]) != before or _one_way(sentence, nouns, site[0])]


def _exchanged(sentence: Sentence, one: int, other: int) -> str:
    return sentence.replaced({(one, one): sentence.words[other], (other, other): sentence.words[one]})


def _sides(sentence: Sentence) -> list[int]:
    """Where "left" and "right" say the side of the picture."""
    return [
        place
        for place, word in enumerate(sentence.words)
        if word in ("left", "right") and relation_at(sentence, place) and sentence.word(place - 1) == "the"
    ]


def _may_be_exchanged(sentence: Sentence, one: int, other: int) -> bool:
    """Of two that are only side by side, or joined by "and", each has to be described otherwise than the other."""
    first, second = sentence.words[one], sentence.words[other]
    if related(canonical(first), canonical(second)) or is_plural(first) != is_plural(second):
        return False
    inner = sentence.words[one + 1 : other]
    if not set(inner) & _JOINED and not any(mutual in " ".join(inner) for mutual in _MUTUAL):
        return True
    found = things(sentence)
    described = [found[place]._replace(noun="") for place in (one, other) if place in found]
    return len(described) == 2 and described[0] != described[1]


def _one_way(sentence: Sentence, nouns: list[int], text: str) -> bool:
    """Whether a text is one whose two neighbouring nouns are exchanged around what only one does to the other."""
    return any(
        set(sentence.words[one + 1 : other]) & _ONE_WAY
        and not set(sentence.words[one + 1 : other]) & _JOINED
        and not any(mutual in " ".join(sentence.words[one:other]) for mutual in _MUTUAL)
        for one, other in pairwise(nouns)
        if _exchanged(sentence, one, other) == text
    )
