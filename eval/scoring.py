"""Answers that any model gave to a benchmark's questions, to its metrics with intervals; no model is loaded."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_align_eval.answers import scored
from mllm_align_eval.benchmark import STRICT, Benchmark
from mllm_align_eval.items import Answer, Item
from mllm_align_eval.judge import Judge
from mllm_align_eval.matrices import MATRIX_SUFFIXES, NUM_SCORES, read_matrix
from mllm_align_eval.metrics import Measures, by_split, mean
from mllm_align_eval.statistics import Bootstraps, Estimate

# A text, or a score of each choice.
Given = Mapping[str, str | Sequence[float]]


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


def read_answers(path: str | os.PathLike[str], items: Sequence[Item] = ()) -> dict[str, str | Sequence[float]]:
    """The answers in a JSONL file of `{id, text}` or `{id, scores}`, or in a matrix of similarities (.npy, .npz).

    Args:
        path: The file.
        items: Whose order the rows of a matrix have; see `matrices.read_matrix`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: Naming the line that is no answer, or has the id of an earlier one; or what a matrix has wrong.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no file of answers {file}")
    if file.suffix in MATRIX_SUFFIXES:
        return dict(read_matrix(file, items))
    found: dict[str, str | Sequence[float]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, given = str(row["id"]), _given(row)
        except (json.JSONDecodeError, KeyError, TypeError):
            name, given = "", None
        if given is None:
            raise ValueError(f"{file}, line {number}: not an answer with id and text, or id and scores (numbers)")
        if name in found:
            raise ValueError(f"{file}, line {number}: a second answer to {name!r}")
        found[name] = given
    return found


def _given(row: Mapping[str, Any]) -> str | tuple[float, ...] | None:
    """The text or the scores of a row; None where it has neither, both, or something else in their place."""
    if ("text" in row) == ("scores" in row):
        return None
    if "text" in row:
        return row["text"] if isinstance(row["text"], str) else None
    scores = row["scores"]
    if not isinstance(scores, list) or not scores or not all(type(score) in (int, float) for score in scores):
        return None
    return None if any(math.isnan(score) for score in scores) else tuple(map(float, scores))


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
        found[item.id] = benchmark.answer(item, entry, parser) if isinstance(entry, str) else scored(item, entry)
    return found


def measures_of(
    benchmark: Benchmark, items: Sequence[Item], given: Given, parser: str, judge: Judge | None = None
) -> Measures:
    """The benchmark's metrics by a parser's rules, and by the strict one the shares of answers that are of no use.

    Of texts, `<benchmark>/<split>/invalid` cannot be read and `<benchmark>/<split>/abstained` says that it cannot
    tell; of rows of scores, `<benchmark>/<split>/tied` has no single best choice. With a judge the metrics are those
    for which it reads the answers.

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
            states = {"tied": "invalid"} if closed else {}
        else:
            states = {"invalid": "invalid"} | ({"abstained": "abstained"} if closed else {})
        for name, state in states.items():
            key = f"{benchmark.name}/{split}/{name}"
            found[key] = mean(members, lambda item, state=state: float(strict[item.id].state == state))
    return found


def estimates(measures: Measures, *, seed: int = 0, num_resamples: int = 2000) -> dict[str, Estimate]:
    """Each metric with its 95 % interval; those of the same units share their resamples."""
    bootstraps = Bootstraps(num_resamples, 0.95, "bca", seed)
    return {name: bootstraps.of(measure.clusters).estimate(measure.metric) for name, measure in measures.items()}
