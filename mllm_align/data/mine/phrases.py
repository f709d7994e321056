"""What a caption names: its runs of words between function words, without a tagger."""

from __future__ import annotations

import re

# English words between which phrases lie: articles, prepositions, conjunctions, pronouns, auxiliaries, and the verbs
# that captions are full of.
_BETWEEN = """
a an the this that these those some any each every another other both all many few several no not
of in on at by with without from to into onto over under above below behind beside near next between among through
around across along against inside outside off up down out for as like while during
and or but nor so than then there here when where which who whose what how
i you he she it its they them their his her our your my we us one
is are was were be been being am has have had do does did can could will would may might must should
seems seem appears appear shows show shown showing sits sit sitting stands stand standing lies lie lying wears wear
wearing holds hold holding looks look looking walks walk walking rides ride riding plays play playing runs run
running eats eat eating carries carry carrying hangs hang hanging parked placed filled covered surrounded
left right top bottom front back side middle center centre
image picture photo photograph scene background foreground view very
"""
BETWEEN = frozenset(_BETWEEN.split())
MOST_WORDS = 4
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")


def phrases_of(text: str) -> list[str]:
    """The phrases of an English text that may name something, each once, in order.

    A run of words that none of `BETWEEN` interrupts, and no mark or number, is a phrase; of a long one the last four
    words, since what is named comes last. Nothing is parsed: of "playing field" "field" is left, of "it is old" "old",
    and a detector's threshold has to tell.
    """
    found: dict[str, str] = {}
    for clause in re.split(r"[^\w\s'-]|\d", text):
        run: list[str] = []
        for word in [*_WORD.findall(clause), ""]:
            if word and word.lower() not in BETWEEN:
                run.append(word)
            elif run:
                phrase = " ".join(run[-MOST_WORDS:])
                found.setdefault(phrase.lower(), phrase)
                run = []
    return list(found.values())
