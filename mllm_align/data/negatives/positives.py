"""Texts that say the same in other words, by rules: synonyms, a frame around it, and parts in another order.

TSVLC has its paraphrases from a language model; what rules can do is little, and safe. A paraphrase is given only
where the claims that can be read of it are those of the text.
"""

from __future__ import annotations

from random import Random

from mllm_align.data.mine.words import kind_of
from mllm_align.data.negatives.claims import claims
from mllm_align.data.negatives.counting import number_of
from mllm_align.data.negatives.lexicon import ATTRIBUTES, is_noun, is_plural, plural, singular, word_set
from mllm_align.data.negatives.relations import relation_at
from mllm_align.data.negatives.rules import is_whole_noun
from mllm_align.data.negatives.sentence import Sentence

# Of two words here each may stand for the other wherever the rules let it stand.
_NOUNS = {
    "couch": "sofa",
    "bicycle": "bike",
    "airplane": "plane",
    "television": "TV",
    "refrigerator": "fridge",
    "motorcycle": "motorbike",
    "photo": "picture",
}
_ATTRIBUTES = {"large": "big", "small": "little", "grey": "gray", "huge": "giant"}
_RELATIONS = {("next", "to"): "beside", ("beside",): "next to", ("beneath",): "underneath", ("underneath",): "beneath"}
_FRAMES = ("In the picture, {}", "The picture shows {}")
_BEGINNINGS = word_set("a an the two three four five six seven eight nine ten one some several")
_VERBS = word_set("is are was were be has have am do does did can will")


def paraphrases(text: str, rng: Random, most: int) -> list[str]:
    """Up to `most` texts that mean the same, drawn by `rng`; none where no rule applies."""
    sentence = Sentence(text)
    found = dict.fromkeys([*_by_synonyms(sentence), *_by_order(sentence), *_by_frame(sentence)])
    said = claims(text)
    kept = [each for each in found if each.casefold() != text.casefold() and claims(each) == said]
    return rng.sample(kept, min(most, len(kept)))


def _by_synonyms(sentence: Sentence) -> list[str]:
    found = []
    other_way = {value.casefold(): key for key, value in _NOUNS.items()} | _NOUNS
    attributes = {value: key for key, value in _ATTRIBUTES.items()} | _ATTRIBUTES
    place = 0
    while place < len(sentence):
        word, key = sentence.words[place], relation_at(sentence, place)
        if key is not None and key in _RELATIONS:
            found.append(sentence.replaced({(place, place + len(key) - 1): _RELATIONS[key]}))
        elif word in attributes and sentence.head(place) is not None and not sentence.is_name(place):
            found.append(sentence.replaced({(place, place): attributes[word]}))
        elif singular(word) in other_way and is_whole_noun(sentence, place):
            new = other_way[singular(word)]
            many = is_plural(word) and word not in other_way
            found.append(sentence.replaced({(place, place): plural(new) if many else new}))
        place += len(key) if key is not None else 1
    return found


def _by_frame(sentence: Sentence) -> list[str]:
    """What begins as a noun does, put behind "The picture shows"; a sentence with a verb of its own in a clause."""
    if sentence.word(0) not in _BEGINNINGS or "picture" in sentence.words:
        return []
    inner = sentence.text[:1].lower() + sentence.text[1:]
    # A verb in -s looks like a plural, so only what has no word that the lists do not know may be an object.
    plain = all(_is_plain(word) for word in sentence.words)
    return [frame.format(inner) for frame in (_FRAMES if plain else _FRAMES[:1])]


def _by_order(sentence: Sentence) -> list[str]:
    """Parts around "and" the other way round, where each is a noun with its attributes, or each has its own place."""
    text = sentence.text.rstrip()
    stop = text[len(text.rstrip(".")) :]
    parts = [part.strip() for part in text.removesuffix(stop).split(" and ")]
    if len(parts) < 2 or "," in text:
        return []
    inner = [Sentence(part) for part in parts]
    if not all(len(part) > 1 and part.word(0) in _BEGINNINGS and all(map(_is_plain, part.words)) for part in inner):
        return []
    placed = [any(word in ("on", "in", "at", "to", "of") for word in part.words) for part in inner]
    if any(placed) != all(placed):
        return []
    turned = [part[:1].lower() + part[1:] for part in reversed(parts)]
    joined = " and ".join(turned)
    return [(joined[:1].upper() if text[:1].isupper() else joined[:1]) + joined[1:] + stop]


def _is_plain(word: str) -> bool:
    """Whether a word is sure to be no verb."""
    if word in _VERBS:
        return False
    return word in ATTRIBUTES or is_noun(word) or number_of(word) is not None or kind_of(word) != "object"
