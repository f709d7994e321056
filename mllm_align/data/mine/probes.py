"""Blind readers of pairs: each learns on some folds what chosen texts look like, and is asked about the others.

A probe is a function of pairs and their folds, and says for each pair 1.0 (it names the chosen text), 0.0 (the
rejected one) or 0.5 (it cannot tell).
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, sparse, special

from mllm_align.data.mine.pairs import plain

VOCABULARY = 20_000
_WORD = re.compile(r"\w+")


class TextPair(NamedTuple):
    """What a blind reader sees of a row.

    Attributes:
        prompt: All turns.
        chosen: Its text.
        rejected: Its text; None for a row without.
        rejected_is_true: Whether it describes a contrast image, so that both texts are right answers to the prompt.
    """

    prompt: str
    chosen: str
    rejected: str | None
    rejected_is_true: bool


def frequencies(pairs: Sequence[TextPair], folds: np.ndarray) -> np.ndarray:
    """(N,) By how often an answer was chosen and how often rejected: under the same question, else under any."""
    result = np.full(len(pairs), 0.5)
    for fold in np.unique(folds):
        under: Counter[tuple[str, str]] = Counter()
        anywhere: Counter[str] = Counter()
        for number in np.flatnonzero(folds != fold).tolist():
            question, answers = _read(pairs[number])
            for answer, sign in zip(answers, (1, -1), strict=True):
                under[question, answer] += sign
                anywhere[answer] += sign
        for number in np.flatnonzero(folds == fold).tolist():
            question, (chosen, rejected) = _read(pairs[number])
            margin = under[question, chosen] - under[question, rejected] or anywhere[chosen] - anywhere[rejected]
            result[number] = _verdict(margin)
    return result


def lengths(pairs: Sequence[TextPair], folds: np.ndarray) -> np.ndarray:
    """(N,) By which of the two texts has more words, the direction learned."""
    longer = np.array([len(_words(pair.chosen)) - len(_words(pair.rejected or "")) for pair in pairs])
    result = np.full(len(pairs), 0.5)
    for fold in np.unique(folds):
        direction = np.sign(np.sign(longer[folds != fold]).sum())
        result[folds == fold] = (np.sign(longer[folds == fold]) * direction + 1) / 2
    return result


def words(pairs: Sequence[TextPair], folds: np.ndarray, penalty: float = 1.0) -> np.ndarray:
    """(N,) By a logistic regression on which words a text has and how long it is.

    It sees the difference of the two texts' features and has no constant, so it cannot tell by their order.

    Args:
        pairs: With a rejected text each.
        folds: (N,) of each pair.
        penalty: Of the squared weights.
    """
    features: Any = _differences(pairs)
    result = np.full(len(pairs), 0.5)
    for fold in np.unique(folds):
        train = features[folds != fold]
        if not train.shape[0]:
            continue

        def loss(weights: np.ndarray, train: Any = train) -> tuple[float, np.ndarray]:
            margin = train @ weights
            value = -special.log_expit(margin).sum() + penalty / 2 * weights @ weights
            return float(value), -(train.T @ special.expit(-margin)) + penalty * weights

        found = optimize.minimize(
            loss, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 100}
        )
        result[folds == fold] = [_verdict(margin) for margin in features[folds == fold] @ found.x]
    return result


class Naming(NamedTuple):
    """How well the most frequent answer to a question is the right one.

    Attributes:
        rows: (M,) which pair each right answer belongs to: its chosen text, and the rejected one where it describes
            a contrast image. Left out are those whose question no other fold asks.
        right: (M,) 1.0 where it is the most frequent answer in the other folds; a part where several are.
        chance: (M,) what it would be if all answers to that question were as frequent.
        asked: How many right answers there are, those left out included.
    """

    rows: np.ndarray
    right: np.ndarray
    chance: np.ndarray
    asked: int


def naming(pairs: Sequence[TextPair], folds: np.ndarray) -> Naming:
    """What a blind model learns from right answers alone, as next-token training on them does."""
    answers = [
        (number, plain(pair.prompt), plain(answer))
        for number, pair in enumerate(pairs)
        for answer in (pair.chosen, pair.rejected if pair.rejected_is_true else None)
        if answer is not None
    ]
    found: list[tuple[int, float, float]] = []
    for fold in np.unique(folds):
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for number, question, answer in answers:
            if folds[number] != fold:
                counts[question][answer] += 1
        for number, question, answer in answers:
            if folds[number] == fold and question in counts:
                most = max(counts[question].values())
                best = [other for other, count in counts[question].items() if count == most]
                found.append((number, (answer in best) / len(best), 1 / len(counts[question])))
    table = np.array(found, dtype=np.float64).reshape(-1, 3)
    return Naming(table[:, 0].astype(int), table[:, 1], table[:, 2], len(answers))


PROBES = {"answer frequencies": frequencies, "words": words, "length": lengths}


def _read(pair: TextPair) -> tuple[str, tuple[str, str]]:
    return plain(pair.prompt), (plain(pair.chosen), plain(pair.rejected or ""))


def _verdict(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _differences(pairs: Sequence[TextPair]) -> sparse.csr_array:
    """(N, words + 2): words of the chosen text less words of the rejected one, and the logarithms of two lengths."""
    sides = [(set(_words(pair.chosen)), set(_words(pair.rejected or ""))) for pair in pairs]
    counts = Counter(word for chosen, rejected in sides for word in chosen ^ rejected)
    common = sorted(counts, key=lambda word: (-counts[word], word))[:VOCABULARY]
    place = {word: number for number, word in enumerate(word for word in common if counts[word] > 1)}
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    for number, (pair, (chosen, rejected)) in enumerate(zip(pairs, sides, strict=True)):
        entries = [(place[word], 1.0 if word in chosen else -1.0) for word in chosen ^ rejected if word in place]
        texts = (pair.chosen, pair.rejected or "")
        many, few = (math.log1p(len(_words(text))) for text in texts), (math.log1p(len(text)) for text in texts)
        entries += [(len(place) + which, next(pick) - next(pick)) for which, pick in enumerate((many, few))]
        for column, value in sorted(entries):
            rows.append(number)
            columns.append(column)
            values.append(value)
    return sparse.csr_array((values, (rows, columns)), shape=(len(pairs), len(place) + 2))
