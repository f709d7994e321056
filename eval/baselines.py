"""What can be had without looking: constant answers, the question's text alone, the prior, a guess."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from mllm_align_eval.benchmark import STRICT, Benchmark
from mllm_align_eval.items import Answer, Item
from mllm_align_eval.matrices import NUM_SCORES
from mllm_align_eval.measures import accuracies

FOLDS = 5


def baselines(items: Sequence[Item], benchmarks: Mapping[str, Benchmark] | None = None) -> dict[str, dict[str, float]]:
    """Metrics of answers that no picture is needed for, by baseline and metric.

    Accuracies, and for the benchmarks given all their published metrics too, of constant answers and of text alone.

    "always yes" and "always no" are given for splits of yes/no questions alone. "text only" is the most frequent
    answer to the same question (else kind of question) in the other four fifths of the split's clusters; on small,
    balanced splits it comes out a little under chance, because what is held out is missing where it is learned.
    Where the prior is broken it also learns that: with two sizes, never the usual one is always the other one. Only
    minimal pairs are proof against it. "prior" is each question's prior answer, and text only where it has none.
    "chance" draws from the choices, or is what a benchmark says of its own metrics. Open questions have none of these;
    of captions to choose from, no two questions have the same, so "text only" leaves them out: what their words alone
    give is the model without the image.
    """
    items = [item for item in items if item.is_closed]
    polls = _yes_no_splits(items)
    asked = [item for item in items if NUM_SCORES not in item.truth]
    blind = _majority(asked)
    found = {
        "always yes": _accuracy(polls, lambda item: float(item.answer == "yes")),
        "always no": _accuracy(polls, lambda item: float(item.answer == "no")),
        "text only": _accuracy(asked, lambda item: float(blind[item.id] == item.answer)),
        "chance": _accuracy(items, lambda item: 1 / len(item.choices)),
    }
    for name, benchmark in (benchmarks or {}).items():
        own = [item for item in items if item.benchmark == name]
        found["chance"] |= benchmark.chance(own) if benchmark.chance is not None and own else {}
    if any(item.prior_answer is not None for item in asked):
        found["prior"] = _accuracy(asked, lambda item: float((item.prior_answer or blind[item.id]) == item.answer))
    for name, values in _published(asked, blind, benchmarks or {}).items():
        found[name] = values | found.get(name, {})
    return {name: values for name, values in found.items() if values}


def _published(
    items: Sequence[Item], blind: Mapping[str, str], benchmarks: Mapping[str, Benchmark]
) -> dict[str, dict[str, float]]:
    """The benchmarks' own metrics of constant answers, where all its questions take them, and of text alone."""
    found: dict[str, dict[str, float]] = {}
    for name, benchmark in benchmarks.items():
        asked = [item for item in items if item.benchmark == name]
        if not asked:
            continue
        ways: dict[str, Callable[[Item], str]] = {"text only": lambda item: blind[item.id]}
        if all(item.is_yes_no for item in asked):
            ways |= {"always yes": lambda item: "yes", "always no": lambda item: "no"}
        elif not any(item.is_yes_no for item in asked):
            ways["always the first"] = lambda item: item.choices[0]
        for way, choose in ways.items():
            chosen = {item.id: (item, choose(item)) for item in asked}
            said = {key: Answer(key, text, text, text == item.answer) for key, (item, text) in chosen.items()}
            values = {key: measure.metric.value() for key, measure in benchmark.score(asked, said, STRICT).items()}
            found.setdefault(way, {}).update({key: value for key, value in values.items() if math.isfinite(value)})
    return found


def _accuracy(items: Sequence[Item], right: Callable[[Item], float]) -> dict[str, float]:
    found = accuracies(items, {item.id: right(item) for item in items})
    return {name: measure.metric.value() for name, measure in found.items()}


def _yes_no_splits(items: Sequence[Item]) -> list[Item]:
    mixed = {(item.benchmark, item.split) for item in items if not item.is_yes_no}
    return [item for item in items if (item.benchmark, item.split) not in mixed]


def _majority(items: Sequence[Item]) -> dict[str, str]:
    """The text-only answer of each item, learned on the clusters outside its fold."""
    counts: dict[tuple[object, ...], Counter[str]] = {}
    for item in items:
        for key in _keys(item):
            for fold in range(FOLDS):
                if fold != _fold(item):
                    counts.setdefault((*key, fold), Counter())[item.answer] += 1
    return {item.id: _best(item, [counts.get((*key, _fold(item))) for key in _keys(item)]) for item in items}


def _keys(item: Item) -> tuple[tuple[str, ...], tuple[str, ...]]:
    head = (item.benchmark, item.split)
    return (*head, "prompt", item.prompt), (*head, "kind", item.kind)


def _best(item: Item, candidates: Sequence[Counter[str] | None]) -> str:
    for counter in candidates:
        known = [choice for choice in item.choices if counter and counter[choice]]
        if counter and known:
            # Ties go to the alphabet, so that the outcome does not depend on the order of items.
            return min(known, key=lambda answer: (-counter[answer], answer))
    return item.choices[0]


def _fold(item: Item) -> int:
    return int(hashlib.sha256(item.cluster.encode()).hexdigest()[:8], 16) % FOLDS
