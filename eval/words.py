"""Words of an English text and their singulars, for benchmarks that look for the names of objects; no downloads.

Tokens are those of the Penn Treebank rules as far as a lower- or upper-case word of letters can tell: punctuation
comes off, hyphens and slashes stay ("bus-stop" is one token), "'s" and "n't" are tokens of their own.
"""

from __future__ import annotations

import re
from collections.abc import Collection

_BREAKS = re.compile(
    r"[\s,:;?!@#$%&*()\[\]{}<>\"`\u00ab\u00bb\u201c\u201d\u2018\u201e\u2026\u2014\u2013]+|--+|''+|\.\.+"
)
_CLITIC = re.compile(r"(?i)(.+?)('s|'re|'ve|'ll|'d|'m|n't|\u2019s)")
_EDGES = ".'\u2019"

# Plurals that no ending explains; those that are also an ordinary word (leaves, a verb) are never anything else.
_IRREGULAR = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "geese": "goose",
    "mice": "mouse",
    "lice": "louse",
    "feet": "foot",
    "teeth": "tooth",
    "oxen": "ox",
    "kine": "cow",
    "leaves": "leaf",
    "loaves": "loaf",
}
# Ending of the plural and of the singular, the likelier reading first.
_ENDINGS = (
    ("ies", "y"),
    ("ies", "ie"),
    ("ves", "f"),
    ("ves", "fe"),
    ("sses", "s"),
    ("zzes", "z"),
    ("ses", "s"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("oes", "o"),
    ("s", ""),
)


def tokens(text: str) -> list[str]:
    """The words of a text, in order and as they are written; a full stop ends a word only where a space follows."""
    found: list[str] = []
    for piece in _BREAKS.split(text):
        word = piece.strip(_EDGES)
        clitic = _CLITIC.fullmatch(word)
        found += [part for part in (clitic.groups() if clitic else (word,)) if part]
    return found


def singular(word: str, known: Collection[str]) -> str:
    """The singular of a noun, if it is one of the `known` words; these, and any other word, come back as they are.

    Knowing the words that matter decides what an ending cannot: "buses" is a bus and "vases" is a vase, "ties" is a
    tie and "parties" a party. Only nouns are meant: "seated" is no seat.
    """
    if word in known:
        return word
    for plural, one in _IRREGULAR.items():
        if word.endswith(plural):
            # Of compounds (firemen, grandchildren) the last part changes.
            single = word.removesuffix(plural) + one
            return single if single in known else word
    for plural, one in _ENDINGS:
        if word.endswith(plural) and (single := word.removesuffix(plural) + one) in known:
            return single
    return word
