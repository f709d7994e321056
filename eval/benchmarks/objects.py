"""Mentions of COCO's 80 objects in a text, by the rules of CHAIR (Rohrbach et al. 2018, arXiv:1809.02156).

Words become singular, pairs that are one word become one ("hot dog" is no dog, "baby bird" no person), "seat" is
dropped where there is a toilet, and what is in the list of synonyms is a mention of the list's class. Differences from
the published script and its forks, which need downloads, in what they make of a word of the list:

- The script's `pattern.en` loses words that end in s or ie ("bus", "minibus", "ties", "canoes", "magpies") and does
  not join "tennis racket" and "sports ball", which then count by their last word. Here "bus" is a bus.
- The forks' WordNet lemmas lose "vases" and the plurals of words that WordNet does not have ("firetrucks",
  "smartphones"); by part of speech they also make a verb an object: "seated" is a seat, so a chair. Here it is not.
- As there, names of the list are compared as they stand in it, after splitting at ", ". In the published file
  "cheesecake" and "motor bike" have a space before them and "iPhone" a capital, so these are never found; nor is a
  name of three words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mllm_align_eval.benchmarks.files import require_file
from mllm_align_eval.words import singular, tokens

_PAIRS = (
    *("motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal", "stop light"),
    *("fire hydrant", "stop sign", "parking meter", "suit case", "sports ball", "baseball bat", "baseball glove"),
    *("tennis racket", "wine glass", "hot dog", "cell phone", "mobile phone", "teddy bear", "hair drier"),
    *("potted plant", "bow tie", "laptop computer", "home plate", "train track"),
)
_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
_VEHICLES = ("jet", "train")


class Mention(NamedTuple):
    """A word of the list as it was found (singular, pairs joined) and the class it is a synonym of."""

    word: str
    category: str


class Vocabulary:
    """The objects that can be mentioned.

    Args:
        synonyms: By name its class; the class is one of the names.
        pairs: Further names of two words that are one.
    """

    def __init__(self, synonyms: dict[str, str], pairs: tuple[str, ...] = ()) -> None:
        self.synonyms = synonyms
        joined = {pair: pair for pair in (*_PAIRS, *pairs)}
        joined |= {f"{age} {animal}": animal for animal in _ANIMALS for age in ("baby", "adult")}
        joined |= {f"passenger {vehicle}": vehicle for vehicle in _VEHICLES}
        self.joined = joined | {"bow tie": "tie", "toilet seat": "toilet"}
        self.known = {word for name in (*synonyms, *self.joined) for word in name.split()}

    def mentions(self, text: str) -> list[Mention]:
        """Every mention, repeated ones too, in order."""
        return self.named([word for word, _ in self.join(self.singulars(text))])

    def singulars(self, text: str) -> list[str]:
        """The words of a text in lower case and the singular."""
        return [singular(word, self.known) for word in tokens(text.lower())]

    def join(self, words: Sequence[str]) -> Iterator[tuple[str, bool]]:
        """The words with pairs joined from left to right, and whether each is a pair."""
        at = 0
        while at < len(words):
            pair = self.joined.get(" ".join(words[at : at + 2]))
            yield (words[at], False) if pair is None else (pair, True)
            at += 1 if pair is None else 2

    def named(self, words: Sequence[str]) -> list[Mention]:
        """Those of some words that are in the list; a seat beside a toilet is not."""
        if "toilet" in words:
            words = [word for word in words if word != "seat"]
        return [Mention(word, self.synonyms[word]) for word in words if word in self.synonyms]


def read_vocabulary(path: Path, origin: str, refined: bool = False) -> Vocabulary:
    """The vocabulary of a file with a class and its synonyms on each line, separated by ", ".

    Args:
        path: The file.
        origin: Where it comes from.
        refined: Whether it is of the later kind, of which white space around names is stripped and every name of two
            words is a pair.

    Raises:
        FileNotFoundError: If it is not there; with its origin.
        ValueError: If there is no name in it.
    """
    synonyms: dict[str, str] = {}
    for line in require_file(path, origin).read_text(encoding="utf-8").splitlines():
        names = line.strip().split(", ")
        names = [name.strip() for name in names] if refined else names
        if names[0]:
            synonyms |= dict.fromkeys(names, names[0])
    if not synonyms:
        raise ValueError(f"{path} holds no names of objects: get it from {origin}")
    pairs = tuple(name for name in synonyms if len(name.split(" ")) == 2) if refined else ()
    return Vocabulary(synonyms, pairs)


def cut_to(text: str, num_words: int) -> str:
    """The first words of a text; all of it where it has no more."""
    return " ".join(text.split()[:num_words]) if len(text.split()) > num_words else text


def matched_lengths(first: dict[str, str], second: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Two sets of texts by item id, of each item both cut to the words of the shorter one.

    Longer captions name more objects, right and wrong; scored after this, two models differ in what they say and not
    in how much.

    Raises:
        ValueError: If they are not of the same items.
    """
    if first.keys() != second.keys():
        raise ValueError(f"texts of other items: {len(first.keys() ^ second.keys())} ids are in one set alone")
    shorter = {name: min(len(first[name].split()), len(second[name].split())) for name in first}
    cut = ({name: cut_to(texts[name], count) for name, count in shorter.items()} for texts in (first, second))
    return next(cut), next(cut)
