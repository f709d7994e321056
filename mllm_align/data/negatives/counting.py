"""Edits of numbers: other number words and digits, before what can be counted."""

from __future__ import annotations

from mllm_align.data.mine.words import kind_of
from mllm_align.data.negatives.lexicon import ATTRIBUTES, is_plural, plural, word_set
from mllm_align.data.negatives.rules import Site, is_whole_noun
from mllm_align.data.negatives.sentence import Sentence

_WRITTEN = "one two three four five six seven eight nine ten eleven twelve"
NUMBERS: dict[str, int] = {word: number for number, word in enumerate(_WRITTEN.split(), start=1)}
_WORDS = {number: word for word, number in NUMBERS.items()}
MOST, FARTHEST = 12, 3
# "the one", "no one", "one of", "one another", "two hundred", "three or four".
_NOT_AFTER = word_set("the no x this that each every any some another other which only number than")
_NOT_BEFORE = word_set("of another or to and hundred thousand million dozen more other")
_NOT_SEEN = word_set("""
    second seconds minute minutes hour hours day days week weeks month months year years time times way ways foot feet
    inch inches mile miles metre metres meter meters percent dollars pounds degrees points stories
    """)
_AGREEMENT = {"is": "are", "was": "were", "has": "have"}


def count(sentence: Sentence) -> list[Site]:
    """Another number from 2 to 12, by up to three; of one thing several, with its noun and a verb that follows it.

    Numbers of hours, of feet, of hundreds, and those within others ("2.5", "10:30", "two-thirds") stay.
    """
    found = []
    for place, word in enumerate(sentence.words):
        given = number_of(word)
        if given is None or not counts(sentence, place):
            continue
        noun = noun_counted(sentence, place)
        if noun is None or (given > 1) != is_plural(sentence.words[noun]):
            continue
        if given == 1 and not is_whole_noun(sentence, noun):
            continue
        changes: dict[tuple[int, int], str] = {}
        if given == 1:
            changes[noun, noun] = plural(sentence.words[noun])
            verb = sentence.word(noun + 1)
            if verb in _AGREEMENT and sentence.joined(noun):
                changes[noun + 1, noun + 1] = _AGREEMENT[verb]
        others = [each for each in range(max(2, given - FARTHEST), min(MOST, given + FARTHEST) + 1) if each != given]
        found.append(
            tuple(
                sentence.replaced({**changes, (place, place): str(each) if word.isdecimal() else _WORDS[each]})
                for each in others
            )
        )
    return found


def number_of(word: str) -> int | None:
    """What a number word or digits say, from 1 to 12."""
    if word.isdecimal() and word.isascii() and len(word) < 3 and 1 <= int(word) <= MOST:
        return int(word)
    return NUMBERS.get(word)


def counts(sentence: Sentence, place: int) -> bool:
    """Whether a number stands by itself and says how many there are."""
    start, end = sentence.spans[place]
    around = sentence.text[max(0, start - 1) : start] + sentence.text[end : end + 1]
    return (
        sentence.joined(place)
        and not set(around) & set(".,:;/$#%'\u2019-+=x\u20ac\u00a3")
        and sentence.word(place - 1) not in _NOT_AFTER
        and sentence.word(place + 1) not in _NOT_BEFORE
        and not (place > 1 and sentence.word(place - 1) in ("or", "to") and number_of(sentence.words[place - 2]))
    )


def noun_counted(sentence: Sentence, place: int) -> int | None:
    """The place of the noun behind a number, attributes between them; None for what is not seen, as hours."""
    following = place + 1
    while following < len(sentence) and sentence.joined(following - 1) and sentence.words[following] in ATTRIBUTES:
        if sentence.words[following] == "orange" and not sentence.is_colour(following):
            break
        following += 1
    if following >= len(sentence) or not sentence.joined(following - 1):
        return None
    word = sentence.words[following]
    seen = kind_of(word) == "object" and word not in _NOT_SEEN and not word.endswith(("ed", "ing"))
    return following if seen else None
