"""Texts that any model gave to a benchmark's questions, to its metrics with intervals; no model is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_align_eval.benchmark import STRICT, Benchmark
from mllm_align_eval.items import Answer, Item
from mllm_align_eval.metrics import Measures, by_split, mean
from mllm_align_eval.statistics import Bootstraps, Estimate


def questions_of(items: Iterable[Item]) -> Iterator[dict[str, Any]]:
    """What a model must be told of each question: `{id, split, image, prompt}`.

    `image` is a name, a list of names where there are several, or None where nothing is shown.
    """
    for item in items:
        names = [picture.name for picture in item.pictures]
        shown = names[0] if len(names) == 1 else names or None
        yield {"id": item.id, "split": item.split, "image": shown, "prompt": item.prompt}


def read_texts(path: str | os.PathLike[str]) -> dict[str, str]:
    """The answers in a JSONL file of `{id, text}`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: Naming the line that is no answer, or has the id of an earlier one.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no file of answers {file}")
    texts: dict[str, str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = str(row["id"]), row["text"]
        except (json.JSONDecodeError, KeyError, TypeError):
            name, text = "", None
        if not isinstance(text, str):
            raise ValueError(f"{file}, line {number}: not an answer with id and text")
        if name in texts:
            raise ValueError(f"{file}, line {number}: a second answer to {name!r}")
        texts[name] = text
    return texts


def answers_of(
    benchmark: Benchmark, items: Sequence[Item], texts: Mapping[str, str], parser: str
) -> dict[str, Answer]:
    """By item id what each text says.

    Raises:
        ValueError: If a question has no text, a text no question, or the parser no rule.
    """
    known = {item.id for item in items}
    stray = [name for name in texts if name not in known]
    if stray:
        raise ValueError(
            f"{len(stray)} of {len(texts)} answers are to no question of {benchmark.name} (first: {stray[0]!r}); ids "
            f"are those that `mllm-align eval questions {benchmark.name}` prints"
        )
    missing = [item.id for item in items if item.id not in texts]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(items)} questions of {benchmark.name} have no answer (first: {missing[0]!r}); "
            'a model that says nothing has the text ""'
        )
    return {item.id: benchmark.answer(item, texts[item.id], parser) for item in items}


def measures_of(benchmark: Benchmark, items: Sequence[Item], texts: Mapping[str, str], parser: str) -> Measures:
    """The benchmark's metrics by a parser's rules, and by the strict one the shares of texts that say nothing usable.

    `<benchmark>/<split>/invalid` cannot be read, `<benchmark>/<split>/abstained` says that it cannot tell.
    """
    found = benchmark.score(items, answers_of(benchmark, items, texts, parser), parser)
    strict = answers_of(benchmark, items, texts, STRICT)
    for split, members in by_split(items).items():
        for state in ("invalid", "abstained"):
            if state == "abstained" and not all(item.is_closed for item in members):
                continue
            key = f"{benchmark.name}/{split}/{state}"
            found[key] = mean(members, lambda item, state=state: float(strict[item.id].state == state))
    return found


def estimates(measures: Measures, *, seed: int = 0, num_resamples: int = 2000) -> dict[str, Estimate]:
    """Each metric with its 95 % interval; those of the same units share their resamples."""
    bootstraps = Bootstraps(num_resamples, 0.95, "bca", seed)
    return {name: bootstraps.of(measure.clusters).estimate(measure.metric) for name, measure in measures.items()}
