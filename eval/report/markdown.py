"""Several runs side by side as Markdown: a table of what they share, and whether they may be compared at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mllm_align_eval.report.comparison import Roles
from mllm_align_eval.report.labels import arm_inline, arm_label, interval, metric_label, number, ordered_metrics
from mllm_align_eval.report.leading import benchmarks_of, leading
from mllm_align_eval.report.metric_names import benchmark_label, parse_key
from mllm_align_eval.report.reading import by_benchmark, warnings

Runs = Mapping[str, Mapping[str, Any]]


def markdown_comparison(runs: Runs) -> str:
    """Several runs as Markdown: a column for each arm of each run, and first what speaks against comparing them.

    Args:
        runs: Results by the name of their run.
    """
    notes = comparison_notes(runs)
    parts = ["\n".join(f"- {note}" for note in notes)] if notes else []
    return "\n\n".join([*parts, table(*comparison_cells(runs))])


def comparison_cells(runs: Runs) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a comparison; the base is shown once where runs agree on all of it.

    Rows are the metrics under the right picture that two columns have, the main ones of benchmarks that one run alone
    asked, and for each benchmark the questions that were asked and what was lost or cut of the written answers.
    """
    columns: dict[str, tuple[str, str]] = {}
    shown: list[Mapping[str, Any]] = []
    for run, results in runs.items():
        before = Roles.of(results["arms"]).before
        for arm, cells in results["arms"].items():
            if arm == before and cells in shown:
                continue
            shown.append(cells)
            columns[f"{run}: {arm_inline(arm)}" if len(runs) > 1 else arm_label(arm)] = (run, arm)
    numbers = {name: runs[run]["arms"][arm] for name, (run, arm) in columns.items()}
    metrics = ordered_metrics(numbers)
    if len(runs) > 1:
        lone = {metric for results in runs.values() for metric in leading(results)}
        shared = {metric for metric in metrics if sum(metric in cells for cells in numbers.values()) > 1}
        asked = [name for results in runs.values() for name in benchmarks_of(results)]
        once = {name for name in asked if asked.count(name) == 1}
        alone = {metric for metric in lone if parse_key(metric).benchmark in once}
        wanted = {m for m in shared if parse_key(m).benchmark not in once and not parse_key(m).picture} | alone
        metrics = [metric for metric in metrics if metric in wanted]
    rows = [[_name(name), *(cell_text(name, cells.get(name)) for cells in numbers.values())] for name in metrics]
    return ["metric", *columns], rows + _questions(runs, columns) + _lost(runs, columns)


def comparison_notes(runs: Runs) -> list[str]:
    """What speaks against comparing: other questions, other rules of reading, another judge, lost answers."""
    notes = []
    for benchmark in dict.fromkeys(name for results in runs.values() for name in benchmarks_of(results)):
        label = benchmark_label(benchmark)
        hashes = {run: found for run, results in runs.items() if (found := _hashes(results, benchmark))}
        if len(set(hashes.values())) > 1:
            notes.append(f"{label}: the runs were not asked the same questions, so their numbers cannot be compared.")
        rules = {
            run: card["parser"]
            for run, results in runs.items()
            if (card := (results.get("benchmarks") or {}).get(benchmark)) and "parser" in card
        }
        if len(set(rules.values())) > 1:
            notes.append(f"{label}: answers were read by different rules ({_each(rules)}).")
    judges = {run: str(results["judge"]) for run, results in runs.items() if results.get("judge")}
    if len(set(judges.values())) > 1:
        notes.append(f"The answers were judged by different judges ({_each(judges)}).")
    lost = {f"{run}: {text}": None for run, results in runs.items() for text in warnings(results)}
    return notes + list(lost)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; bars within cells are written so that they end none."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    first, *rest = [f"| {' | '.join(row)} |" for row in lines]
    return "\n".join([first, "|---|" + "---:|" * (len(head) - 1), *rest])


def cell_text(metric: str, cell: Mapping[str, Any] | None, signed: bool = False) -> str:
    """A value with its interval; in bold where it is a difference that excludes zero."""
    if not cell:
        return ""
    bounds = interval(metric, cell, signed)
    mark = "**" if signed and cell.get("excludes_zero") else ""
    return f"{mark}{number(metric, cell.get('value'), signed)}{mark}" + (f" ({bounds})" if bounds else "")


def _questions(runs: Runs, columns: Mapping[str, tuple[str, str]]) -> list[list[str]]:
    """Per benchmark how many questions were asked, with a hash of them: equal hashes, equal questions."""
    rows = []
    for benchmark in dict.fromkeys(name for results in runs.values() for name in benchmarks_of(results)):
        cells = [_asked(runs[run], benchmark) for run, _ in columns.values()]
        rows += [[f"{benchmark_label(benchmark)}: questions (hash)", *cells]] if any(cells) else []
    return rows


def _lost(runs: Runs, columns: Mapping[str, tuple[str, str]]) -> list[list[str]]:
    """Per benchmark the shares of written answers that could not be read, and that were cut."""
    found = {run: by_benchmark(results) for run, results in runs.items()}
    rows = []
    for benchmark in dict.fromkeys(name for shares in found.values() for name in shares):
        for share, name in (("unreadable", "unreadable"), ("truncated", "cut")):
            cells = [found[run].get(benchmark, {}).get(arm) for run, arm in columns.values()]
            rows.append(
                [f"{benchmark}: written answers {name}", *(number("", cell[share]) if cell else "" for cell in cells)]
            )
    return rows


def _asked(results: Mapping[str, Any], benchmark: str) -> str:
    splits = [v for name, v in (results.get("data") or {}).items() if _is_of(name, v, benchmark)]
    if not splits:
        return ""
    return f"{sum(split['questions'] for split in splits):,} ({' '.join(split['sha256'][:4] for split in splits)})"


def _hashes(results: Mapping[str, Any], benchmark: str) -> tuple[tuple[str, str], ...]:
    data = results.get("data") or {}
    return tuple(sorted((name, v["sha256"]) for name, v in data.items() if _is_of(name, v, benchmark)))


def _is_of(split: str, values: Any, benchmark: str) -> bool:
    """Whether an entry of the data is a split of a benchmark; a run may have noted other things there."""
    return split.split("/")[0] == benchmark and isinstance(values, Mapping) and "sha256" in values


def _each(values: Mapping[str, str]) -> str:
    return ", ".join(f"{run} {value}" for run, value in values.items())


def _name(metric: str) -> str:
    label = metric_label(metric)
    return f"`{metric}`" if label == metric else label
