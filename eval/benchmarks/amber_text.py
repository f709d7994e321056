"""Objects in AMBER's descriptions, by exact match: no tagger and no word vectors, so under names of its own.

The published script keeps the nouns (NLTK) whose WordNet lemma is in the association words. One that is among the
image's objects or their associated words is right; of any other, spaCy's en_core_web_lg decides whether it means (more
than 0.8 similar) one of the targets or of the objects. Here

- every word counts whose singular is in the association words, whatever its part of speech ("light" in "light green"
  too; the script's safe words "light" and "orange" are never wrong),
- a word means another only if it is that word, so synonyms that the association words lack are wrong: `chair_exact`
  and `hal_exact` are higher and `cover_exact` lower than the script's,
- plurals in the association words ("slippers", "sunglasses", "earrings", "chopsticks") are found; the script's lemmas
  never give them. As in the script, words are compared as they are written, capitals included.

For comparison between models, never with published columns. As in the script an object that is listed twice for an
image is covered once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mllm_align_eval.benchmark import OFFICIAL
from mllm_align_eval.benchmarks.files import read_json, require_file
from mllm_align_eval.items import Answer, Item
from mllm_align_eval.metrics import Measure, Measures, mean, share
from mllm_align_eval.statistics import Array, Metric
from mllm_align_eval.words import singular, tokens


@dataclass(frozen=True)
class Associations:
    """The objects that are looked for.

    Attributes:
        words: By object the words that mean it too.
        safe: Words that are never wrong.
    """

    words: Mapping[str, Sequence[str]]
    safe: frozenset[str]

    @classmethod
    def read(cls, folder: Path, origin: str) -> Associations:
        """From relation.json and safe_words.txt.

        Raises:
            FileNotFoundError: If one is not there; with its origin.
            ValueError: If relation.json is not an object of lists of words.
        """
        path = folder / "relation.json"
        words = read_json(path, origin)
        if not isinstance(words, dict) or not all(isinstance(others, list) for others in words.values()):
            raise ValueError(f"{path} is not an object with a list of words each; get it from {origin}")
        safe = require_file(folder / "safe_words.txt", origin).read_text(encoding="utf-8").split("\n")
        return cls(words, frozenset(word for word in safe if word))

    @property
    def vocabulary(self) -> frozenset[str]:
        """Every object and every word that means one."""
        return frozenset(self.words).union(*self.words.values())

    def target(self, word: str, names: Sequence[str]) -> int | None:
        """Which of an image's objects a word means, by association or else by name; None if it is none of them."""
        for index, name in enumerate(names):
            if word in self.words.get(name, ()):
                return index
        return names.index(word) if word in names else None


@dataclass(frozen=True)
class Described:
    """Counts of one description: mentions, wrong ones, objects that it names, targets of hallucination."""

    mentions: int
    wrong: int
    covered: int
    cognitive: int


def described(text: str, item: Item, known: frozenset[str]) -> Described:
    """Counts of one description."""
    associations: Associations = item.truth["associations"]
    mentions = wrong = 0
    covered: set[int] = set()
    cognitive: set[int] = set()
    for word in tokens(text):
        noun = singular(word, known)
        if noun not in known:
            continue
        mentions += 1
        if noun in associations.safe:
            continue
        there = associations.target(noun, item.truth["truth"])
        if there is not None:
            covered.add(there)
            continue
        wrong += 1
        expected = associations.target(noun, item.truth["hallu"])
        if expected is not None:
            cognitive.add(expected)
    return Described(mentions, wrong, len(covered), len(cognitive))


def description_measures(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """`chair_exact` (wrong mentions), `cover_exact` (objects named), `hal_exact` (descriptions with a wrong mention),
    `cog_exact` (targets of hallucination named; lower is better), `words`, `mentions`.

    By official rules with the script's 0.001 in the denominators, by the others undefined where nothing is mentioned.
    """
    known = items[0].truth["associations"].vocabulary
    found = {item.id: described(answers[item.id].text, item, known) for item in items}
    parts = {
        "chair_exact": share(items, lambda item: found[item.id].wrong, lambda item: found[item.id].mentions),
        "cover_exact": share(items, lambda item: found[item.id].covered, lambda item: len(item.truth["truth"])),
        "hal_exact": share(items, lambda item: found[item.id].wrong == 0, lambda item: 1),
        "cog_exact": share(items, lambda item: found[item.id].cognitive, lambda item: len(item.truth["hallu"])),
    }
    start = 1e-3 if parser == OFFICIAL else 0.0
    measures = {name: with_start(measure, start, rest=name == "hal_exact") for name, measure in parts.items()}
    measures["words"] = mean(items, lambda item: len(answers[item.id].text.split()))
    measures["mentions"] = mean(items, lambda item: found[item.id].mentions)
    return measures


def with_start(measure: Measure, start: float, rest: bool = False) -> Measure:
    """A ratio whose denominator starts at `start`, as the published script's do; with `rest` what it leaves of 1."""
    statistic = measure.metric.statistic

    def value(totals: Array) -> Array:
        part = statistic(totals + np.array([0.0, start]))
        return 1 - part if rest else part

    return Measure(Metric(measure.metric.columns, value), measure.clusters)
