"""Encoders compared on the same questions, from names to results and report: what `mllm-align eval encoders` does."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mllm_align_eval.answers import scored
from mllm_align_eval.benchmark import Benchmark
from mllm_align_eval.benchmarks import BENCHMARKS
from mllm_align_eval.changes import changed_answers
from mllm_align_eval.items import Answer, Item
from mllm_align_eval.published import PMI
from mllm_align_eval.report import markdown_report, write_report, write_results
from mllm_align_eval.report.results_file import write_new
from mllm_align_eval.runner import Answers
from mllm_align_eval.similarity import Encoder, check_scored_by_rows, similarity_rows
from mllm_align_eval.summary import summarise

SIMILARITY = "similarity"


def compare_encoders(
    encoders: Mapping[str, Callable[[], Encoder]],
    items: Sequence[Item],
    output: str | Path,
    *,
    overwrite: bool = False,
    title: str = "Evaluation of encoders",
    seed: int = 0,
    **more: Any,
) -> dict[str, Any]:
    """Scores every encoder on the same images and texts, and writes results and report.

    Each encoder but the first is compared with the first: paired differences with cluster-bootstrap intervals, McNemar
    tests where every question is a cluster of its own, and Holm-adjusted tests of what each benchmark is judged by, as
    `summary.summarise` has them for models that write. Ties are wrong and are counted.

    Args:
        encoders: By the name of its arm what makes it; one is in memory at a time.
        items: Questions that are answered by rows of scores, of one benchmark or several, whole.
        output: Folder for `results.json`, `report.html` and `report.md`.
        overwrite: Replace what is there.
        title: Of the report.
        seed: Of the bootstrap.
        **more: Further top-level entries of the results, as `model`.

    Returns:
        The results, in the form that `mllm_align_eval.report` describes.

    Raises:
        FileExistsError: If there are results and `overwrite` is False.
        ValueError: If there is no encoder, or a question takes a text.
    """
    folder, started = Path(output), time.perf_counter()
    if not encoders:
        raise ValueError("there is no encoder to score: name one")
    for name in ("results.json", "report.html", "report.md"):
        if (folder / name).exists() and not overwrite:
            raise FileExistsError(f"{folder / name} exists: name another folder, or --overwrite")
    check_scored_by_rows(items)
    answers: dict[str, Answers] = {
        arm: {(SIMILARITY, "right"): _answers(make, items)} for arm, make in encoders.items()
    }
    first, *others = encoders
    results = summarise(
        items,
        answers,
        comparisons=[(arm, first) for arm in others],
        seconds=time.perf_counter() - started,
        seed=seed,
        benchmarks=_benchmarks(items),
        scores=SIMILARITY,
        **more,
    )
    write_results(results, folder / "results.json", overwrite=overwrite)
    changed = [entry for arm in others for entry in changed_answers(items, answers, before=first, after=arm)]
    write_report(results, changed, folder / "report.html", title=title, overwrite=overwrite)
    write_new(folder / "report.md", markdown_report(results, title), overwrite)
    return results


def _answers(make: Callable[[], Encoder], items: Sequence[Item]) -> list[Answer]:
    rows = similarity_rows(make(), items)
    return [scored(item, rows[item.id]) for item in items]


def _benchmarks(items: Sequence[Item]) -> dict[str, Benchmark]:
    """The benchmarks of the questions; similarities are judged as they are, not by what an image adds."""
    found = {name: BENCHMARKS[name] for name in dict.fromkeys(item.benchmark for item in items)}
    return {name: replace(each, primary=each.primary.removesuffix(PMI)) for name, each in found.items()}
