"""One evaluation from names and folders to results, report and table: what `mllm-align eval run` does."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from accelerate.utils import broadcast_object_list
from datasets.exceptions import DatasetNotFoundError

from mllm_align.data.processes import processes
from mllm_align.models import ModelArguments, load_arms, mixer_facts
from mllm_align_eval.arms import Arm, active_arm, fingerprint
from mllm_align_eval.benchmark import STRICT, Benchmark
from mllm_align_eval.benchmarks import BENCHMARKS, world_items
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.locating import read_benchmark
from mllm_align_eval.cache import AnswerCache
from mllm_align_eval.changes import changed_answers
from mllm_align_eval.estimate import say_how_long
from mllm_align_eval.items import METHODS, Answer, Item
from mllm_align_eval.judge import Judge
from mllm_align_eval.letters import Checks, letter_checks
from mllm_align_eval.report import markdown_report, write_report, write_results
from mllm_align_eval.report.results_file import write_new
from mllm_align_eval.runner import AnswerErrors, Answers, answer_arms, is_askable
from mllm_align_eval.suites import first_units, suite_items
from mllm_align_eval.summary import summarise

logger = logging.getLogger(__name__)
BASE, CONTROL, HUB = "base", "control", "hub"
DEFAULT_LENGTH = 16  # tokens of an answer about the world


def benchmark_items(
    benchmark: str,
    data: str | None = None,
    images: str | None = None,
    limit: int | None = None,
    suite: str = "full",
) -> list[Item]:
    """The questions of a benchmark.

    Args:
        benchmark: "world", or one of `benchmarks.BENCHMARKS`.
        data: Folder that holds the annotation files, itself or as <benchmark>/, or one file of them;
            `MLLM_ALIGN_DATA` by default; or "hub" for the copy on the Hub, pictures included.
        images: Folder of the pictures; without one, questions can be read but not shown.
        limit: Questions (of pairs, pairs) per split at the most; for the world the number of scenes, pairs and polls.
        suite: How much of it, in place of `limit`: one of `suites.SUITES`.

    Raises:
        ValueError: If files are missing; the message says which and where they come from. If both `limit` and a
            smaller suite are given.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--limit must be at least 1, not {limit}; leave it out to ask everything")
    if limit is not None and suite != "full":
        raise ValueError(f"--limit {limit} and --suite {suite} both say how much is asked: give one of them")
    if benchmark == "world":
        return world_items(limit, limit, limit) if limit else suite_items(world_items(), suite)
    found = BENCHMARKS[benchmark]
    if found.is_rendered:
        items = found.read(Path(), PictureFolder(None, ""))
    elif data == HUB:
        items = _from_hub(found)
    else:
        items = read_benchmark(data, found, PictureFolder(images, found.image_origin))
    return suite_items(items, suite) if limit is None else first_units(items, limit)


def _from_hub(benchmark: Benchmark) -> list[Item]:
    if not benchmark.hub:
        raise ValueError(f"no copy of {benchmark.name} on the Hub is known here: get it from {benchmark.origin}")
    items: list[Item] = []
    for hub in benchmark.hub:
        try:
            rows: Any = datasets.load_dataset(hub.path, hub.name, split=hub.split)
        except (OSError, ValueError, DatasetNotFoundError) as error:
            raise ValueError(f"{benchmark.name} could not be loaded from the Hub ({hub.path}): {error}") from error
        items += hub.read(rows)
    return items


def evaluate(
    arguments: ModelArguments,
    adapters: Mapping[str, str],
    items: Sequence[Item],
    output: str | Path,
    *,
    batch_size: int = 32,
    parser: str = STRICT,
    judge: Judge | None = None,
    overwrite: bool = False,
    title: str = "Evaluation",
    max_new_tokens: int | None = None,
    suite: str = "",
    check_letters: bool = False,
    without: Sequence[int] = (),
    encoders: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Asks a base and its adapters the same questions on one load, and writes results and report.

    Answers are kept in `output`/answers.jsonl as they come, so that a killed run goes on where it was. Under
    `accelerate launch` the processes share the questions, and the first one writes.

    Args:
        arguments: The base model and its quantisation.
        adapters: Folders of adapters by the name of their arm; none for the base alone.
        items: The questions, of one benchmark or several.
        output: Folder for `results.json`, `report.html`, `report.md` and the answers.
        batch_size: Questions at a time.
        parser: By whose rules generated answers are read (`benchmark.PARSERS`); benchmarks for which that one has no
            rule are read strictly.
        judge: Reads the answers of the benchmarks that have metrics with one; None leaves these metrics out.
        overwrite: Replace results and report that are there.
        title: Of the report.
        max_new_tokens: Of a generated answer; by default each benchmark's own limit.
        suite: What part of their benchmarks the questions are (`suites.suite_label`), for the run card.
        check_letters: Ask multiple choice in two other ways, too (`letters`): three times the log-probabilities.
        without: Further vision encoders of a mixer that are switched off, counted from 1. An arm that was not trained
            with the mixer answers without all of it.
        encoders: Where the further vision encoders of a mixer are now, if they were moved.

    Raises:
        FileExistsError: If there are results and `overwrite` is False.
        ValueError: If an arm is called "base", an adapter does not fit, there is a judge and nothing to judge, a
            benchmark cannot be put to a model that writes, `max_new_tokens` is less than 1, or there is no encoder
            to switch off.
        AnswerErrors: If pictures cannot be read or the model fails; everything else is asked and kept first, and no
            results are written: those of fewer questions would compare with no other run.
    """
    folder, started = Path(output), time.perf_counter()
    _refuse(folder, adapters, items, overwrite, max_new_tokens, check_letters)
    benchmarks = _benchmarks(items, judge)
    if max_new_tokens is not None:
        benchmarks = {name: replace(found, max_new_tokens=max_new_tokens) for name, found in benchmarks.items()}
    lengths = {name: found.max_new_tokens for name, found in benchmarks.items()}
    model, processor, mixed = load_arms(arguments, adapters, encoders)
    arms = _arms(mixed, without)
    for arm in arms:
        with active_arm(model, arm):
            pass  # an encoder that is not there is said before anything is asked
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "parser": parser,
        "default_length": max_new_tokens or DEFAULT_LENGTH,
    }
    answers = _answers(model, processor, items, arms, folder / "answers.jsonl", lengths, **settings)
    further = None
    if check_letters:
        own = {arm: given.get(("logprob", "right"), []) for arm, given in answers.items()}
        cache = AnswerCache(folder / "answers.jsonl", processes().process_index)
        further = letter_checks(model, processor, items, arms, own, batch_size=batch_size, cache=cache)
    shared: list[Any] = [None]
    if processes().is_main_process:
        shared[0] = results = summarise(
            items,
            answers,
            comparisons=_comparisons(adapters),
            seconds=time.perf_counter() - started,
            benchmarks=benchmarks,
            parser=parser,
            model=_model_card(arguments, adapters, model, arms, batch_size, without),
        )
        if suite:
            results["suite"] = suite
        if further is not None:
            results["letter_checks"] = further
        if judge is not None:
            results["judge"] = judge.card()
        write_results(results, folder / "results.json", overwrite=overwrite)
        changed = [entry for name in adapters for entry in changed_answers(items, answers, after=name)]
        write_report(results, changed, folder / "report.html", title=title, overwrite=overwrite)
        write_new(folder / "report.md", markdown_report(results, title), overwrite)
    return broadcast_object_list(shared)[0]


def _refuse(
    folder: Path,
    adapters: Mapping[str, str],
    items: Sequence[Item],
    overwrite: bool,
    max_new_tokens: int | None,
    check_letters: bool,
) -> None:
    """What cannot work, before a model is loaded; see `evaluate`."""
    for name in ("results.json", "report.html", "report.md"):
        if (folder / name).exists() and not overwrite:
            raise FileExistsError(f"{folder / name} exists: name another folder, or --overwrite")
    if BASE in adapters:
        raise ValueError(f"an adapter cannot be called {BASE!r}: that is the arm without adapters")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be at least 1, not {max_new_tokens}")
    if check_letters and not Checks.of(items).asked:
        raise ValueError("--letter-checks: no question of this run has options by letter")


def _arms(mixed: Mapping[str | None, bool], without: Sequence[int]) -> list[Arm]:
    """The base and each adapter; one whose mixer it is not answers without it."""
    off = tuple(number - 1 for number in without)
    return [Arm(name or BASE, name, off if own else None) for name, own in mixed.items()]


def _comparisons(adapters: Mapping[str, str]) -> list[tuple[str, str]]:
    """Each adapter with the base, and with the one that is called control, where one is."""
    others = [name for name in adapters if name != CONTROL]
    return [(name, BASE) for name in adapters] + [(name, CONTROL) for name in others if CONTROL in adapters]


def _model_card(
    arguments: ModelArguments,
    adapters: Mapping[str, str],
    model: Any,
    arms: Sequence[Arm],
    batch_size: int,
    without: Sequence[int],
) -> dict[str, Any]:
    """What was asked: names, quantisation, and a hash of each arm's weights."""
    return {
        "base": arguments.model_name_or_path,
        "adapters": dict(adapters),
        "load_in_4bit": arguments.load_in_4bit,
        "batch_size": batch_size,
        "sha256": {arm.name: fingerprint(model, arm.adapter, arm.off)[:16] for arm in arms},
        **_mixer_card(model, arms, without),
    }


def _mixer_card(model: Any, arms: Sequence[Arm], without: Sequence[int]) -> dict[str, Any]:
    """The mixer and its further encoders, and who was asked without them; empty where there is none."""
    mixer = mixer_facts(model)
    if mixer is None:
        return {}
    off = [arm.name for arm in arms if arm.off is None]
    card = {"mixer": {"kind": mixer["kind"], "encoders": mixer["encoders"], **({"off in": off} if off else {})}}
    return card | ({"without_encoders": list(without)} if without else {})


def _benchmarks(items: Sequence[Item], judge: Judge | None) -> dict[str, Benchmark]:
    """The benchmarks of a run by name, judged where there is a judge; see `evaluate` for what is refused."""
    names = dict.fromkeys(item.benchmark for item in items)
    found = {name: BENCHMARKS[name] for name in names if name in BENCHMARKS}
    for name in names:
        if not any(
            is_askable(item, method, "right") for item in items if item.benchmark == name for method in METHODS
        ):
            raise ValueError(
                f"{name} takes embeddings of images and texts, which a model that writes cannot give in one answer: "
                f"score an encoder with `mllm-align eval score {name} --dual-encoder MODEL`, or several by "
                "`mllm-align eval encoders`"
            )
    if judge is None:
        for name in (name for name, benchmark in found.items() if benchmark.needs_judge):
            logger.warning(
                "%s: without --judge the answers are written and kept, and not rated; the same command with --judge "
                "and --overwrite rates them",
                name,
            )
        return found
    if not any(benchmark.judged for benchmark in found.values()):
        raise ValueError(f"{', '.join(names)}: scored without a judge; leave --judge out")
    return {name: benchmark.judged_by(judge) for name, benchmark in found.items()}


def _answers(
    model: Any,
    processor: Any,
    items: Sequence[Item],
    arms: Sequence[Arm],
    path: Path,
    lengths: Mapping[str, int],
    *,
    batch_size: int,
    parser: str,
    default_length: int,
) -> dict[str, Answers]:
    """Of all benchmarks, each with its own limit on the length of an answer."""
    cache = AnswerCache(path, processes().process_index)
    amount = {"batch_size": batch_size, "default_length": default_length}
    say_how_long(model, processor, items, arms, cache, lengths, **amount)
    readings = {name: found.reading(parser) for name, found in BENCHMARKS.items() if parser in found.parsers}
    answers: dict[str, Answers] = {arm.name: {} for arm in arms}
    failed: list[Answer] = []
    total = 0
    for name in dict.fromkeys(item.benchmark for item in items):
        members = [item for item in items if item.benchmark == name]
        length = lengths.get(name, default_length)
        settings: dict[str, Any] = {"batch_size": batch_size, "cache": cache, "max_new_tokens": length}
        try:
            found = answer_arms(model, processor, members, arms, readings=readings, on_error="count", **settings)
        except AnswerErrors as error:
            advice = (
                f"The rest was not asked; what was answered is kept in {path}. Out of memory: a smaller --batch-size"
            )
            raise AnswerErrors(error.failed, error.total, gave_up=True, advice=advice) from error
        for arm, given in found.items():
            for key, entries in given.items():
                answers[arm].setdefault(key, []).extend(entries)
                failed += [entry for entry in entries if entry.state == "error"]
                total += len(entries)
    if failed:
        raise AnswerErrors(failed, total, advice=_advice(items, failed, path))
    return answers


def _advice(items: Sequence[Item], failed: Sequence[Answer], kept: Path) -> str:
    """What to do about answers that are missing."""
    broken = {answer.item for answer in failed if answer.picture}
    names = dict.fromkeys(item.benchmark for item in items if item.id in broken)
    origins = [BENCHMARKS[name].image_origin for name in names if name in BENCHMARKS]
    again = f"Get them again ({'; '.join(dict.fromkeys(origins))}) and give" if origins else "Mend that and give"
    return (
        f"{again} the same command: the other answers are kept in {kept}, and only what is missing is asked. "
        "Nothing was scored"
    )
