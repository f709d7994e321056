"""Answers that any model gave to a benchmark's questions, to its metrics with intervals; no model is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from mllm_align_eval.answer_file import CutText, Given
from mllm_align_eval.answers import scored
from mllm_align_eval.benchmark import STRICT, Benchmark
from mllm_align_eval.items import Answer, Item
from mllm_align_eval.judge import Judge
from mllm_align_eval.matrices import NUM_SCORES
from mllm_align_eval.metrics import Measures, by_split, mean
from mllm_align_eval.statistics import Bootstraps, Estimate
from mllm_align_eval.written import Shares, shares_of


def questions_of(items: Iterable[Item]) -> Iterator[dict[str, Any]]:
    """What a model must be told of each question: `{id, split, image, prompt}`.

    `image` is a name, a list of names where there are several, or None where nothing is shown. Where the prompt does
    not say what there is to choose from (captions to score), `choices` does, and `crop` [x, y, width, height] where
    only a part of the image is shown.
    """
    for item in items:
        names = [picture.name for picture in item.pictures]
        shown = names[0] if len(names) == 1 else names or None
        question: dict[str, Any] = {"id": item.id, "split": item.split, "image": shown, "prompt": item.prompt}
        if item.is_closed and not item.is_yes_no and not item.labels:
            question["choices"] = list(item.choices)
        if "crop" in item.truth:
            question["crop"] = item.truth["crop"]
        yield question


def answered_splits(items: Sequence[Item], given: Given) -> tuple[list[Item], list[str]]:
    """The questions of the splits that something was answered of, and the names of the others.

    All of them where nothing is answered at all.
    """
    found = {item.split for item in items if item.id in given}
    left = [split for split in dict.fromkeys(item.split for item in items) if split not in found]
    return ([item for item in items if item.split in found], left) if found else (list(items), [])


def answers_of(benchmark: Benchmark, items: Sequence[Item], given: Given, parser: str) -> dict[str, Answer]:
    """By item id what each text or row of scores says.

    The choice of a row of scores is the one with the highest; where several have it, it is none.

    Raises:
        ValueError: If a question has no answer, an answer no question, the parser no rule, a text is where scores are
            needed or the other way round, or there are not as many scores as choices.
    """
    known = {item.id for item in items}
    stray = [name for name in given if name not in known]
    if stray:
        raise ValueError(
            f"{len(stray)} of {len(given)} answers are to no question of {benchmark.name} (first: {stray[0]!r}); ids "
            f"are those that `mllm-align eval questions {benchmark.name}` prints"
        )
    missing = [item.id for item in items if item.id not in given]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(items)} questions of {benchmark.name} have no answer (first: {missing[0]!r}); "
            'a model that says nothing has the text ""'
        )
    found = {}
    for item in items:
        entry = given[item.id]
        if isinstance(entry, str) and NUM_SCORES in item.truth:
            raise ValueError(
                f"the answer to {item.id!r} is a text: {benchmark.name} needs "
                f'{{"id": ..., "scores": [...]}} with {item.truth[NUM_SCORES]} scores'
            )
        said = benchmark.answer(item, entry, parser) if isinstance(entry, str) else scored(item, entry)
        found[item.id] = replace(said, truncated=isinstance(entry, CutText))
    return found


def reading_of_answers(benchmark: Benchmark, items: Sequence[Item], given: Given) -> dict[str, Shares]:
    """By `<benchmark>/<split>` what became of the answers that are texts, read by the strict rules."""
    strict = answers_of(benchmark, items, given, STRICT)
    texts = [item for item in items if isinstance(given[item.id], str)]
    return {
        f"{benchmark.name}/{split}": shares_of(members, [strict[item.id] for item in members])
        for split, members in by_split(texts).items()
    }


def measures_of(
    benchmark: Benchmark, items: Sequence[Item], given: Given, parser: str, judge: Judge | None = None
) -> Measures:
    """The benchmark's metrics by a parser's rules, and by the strict one the shares of answers that are of no use.

    Of texts, `<benchmark>/<split>/invalid` cannot be read and `<benchmark>/<split>/abstained` says that it cannot
    tell; of rows of scores, `<benchmark>/<split>/tied` has no single best choice, or is what `Benchmark.ties` says.
    With a judge the metrics are those for which it reads the answers.

    Raises:
        ValueError: If there is a judge and the benchmark has no use for one, or needs one and there is none.
    """
    answers = answers_of(benchmark, items, given, parser)
    if judge is not None and benchmark.judged is None:
        raise ValueError(f"{benchmark.name} is scored without a judge; leave --judge out")
    if judge is None and benchmark.needs_judge:
        raise ValueError(
            f"{benchmark.name} needs a judge to read the answers: name one with --judge, a chat model or the address "
            "of a chat endpoint (then with --judge-model too)"
        )
    if judge is not None and benchmark.judged is not None:
        found = benchmark.judged(items, answers, parser, judge)
    else:
        found = benchmark.score(items, answers, parser)
    strict = answers_of(benchmark, items, given, STRICT)
    for split, members in by_split(items).items():
        closed = all(item.is_closed for item in members)
        if all(len(strict[item.id].scores) for item in members):
            states = {"tied": "invalid"} if closed and benchmark.ties is None else {}
        else:
            states = {"invalid": "invalid"} | ({"abstained": "abstained"} if closed else {})
        for name, state in states.items():
            key = f"{benchmark.name}/{split}/{name}"
            found[key] = mean(members, lambda item, state=state: float(strict[item.id].state == state))
    if benchmark.ties is not None and all(len(entry.scores) for entry in strict.values()):
        found |= benchmark.ties(items, strict)
    return found


def estimates(measures: Measures, *, seed: int = 0, num_resamples: int = 2000) -> dict[str, Estimate]:
    """Each metric with its 95 % interval; those of the same units share their resamples."""
    bootstraps = Bootstraps(num_resamples, 0.95, "bca", seed)
    return {name: bootstraps.of(measure.clusters).estimate(measure.metric) for name, measure in measures.items()}
