"""How a run was made, for whoever wants to repeat it: what was asked, by which rules, with which versions, on what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mllm_align_eval.report.comparison import finite
from mllm_align_eval.report.metric_names import benchmark_label

# Headings, and the entries of the results that stand below them.
PARTS = {
    "Model": "model",
    "Judge": "judge",
    "Data": "data",
    "Intervals": "intervals",
    "Machine": "machine",
    "Versions": "versions",
}


# What multiple choice was asked in, beside its letters (`letters.letter_checks`).
LETTER_WAYS = {
    "letters": "by the letter",
    "reversed": "options in the opposite order",
    "same_option": "the same option in both orders",
    "wording": "by the option's wording, per byte",
}


def check_lines(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Of multiple choice in other ways: benchmark, arm and way; the share of questions with its 95 % interval."""
    return [
        (
            f"{benchmark_label(benchmark)}, {arm}: {LETTER_WAYS[way]}",
            f"{100 * v['value']:.1f} % ({100 * v['low']:.1f} to {100 * v['high']:.1f}) of {v['n']:,}",
        )
        for benchmark, arms in (results.get("letter_checks") or {}).items()
        for arm, ways in arms.items()
        for way, v in ways.items()
    ]


def run_card(results: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Headed lists of names and values; what a run does not know is left out."""
    run = [("Seed", str(results["seed"]))] if results.get("seed") is not None else []
    if results.get("suite"):
        run.append(("Questions", str(results["suite"])))
    if finite(results.get("seconds")):
        run.append(("Whole run", _duration(results["seconds"])))
    stages = [(name, _duration(value)) for name, value in results.get("stages", {}).items() if finite(value)]
    sections = [("Run", run), ("Time by stage", stages), ("Benchmarks", _benchmarks(results))]
    sections.append(("Multiple choice in other ways", check_lines(results)))
    sections += [(head, _pairs(results.get(part) or {})) for head, part in PARTS.items()]
    return [(head, rows) for head, rows in sections if rows]


def asked(results: Mapping[str, Any]) -> list[str]:
    """A line for each benchmark but the world: what it is, and how much of it was asked."""
    lines = []
    for name, card in (results.get("benchmarks") or {}).items():
        splits = [values for split, values in (results.get("data") or {}).items() if split.split("/")[0] == name]
        questions = sum(values["questions"] for values in splits)
        if name != "world" and questions:
            lines.append(f"{card['title']}. {questions:,} questions in {len(splits)} split{'s'[: len(splits) > 1]}.")
    return lines


def _benchmarks(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """By whose rules its answers were read, how long they could be, and what it is judged by."""
    rows = []
    for name, card in (results.get("benchmarks") or {}).items():
        parts = [f"read by {card['parser']} rules"]
        if card.get("max_new_tokens"):
            parts.append(f"answers of at most {card['max_new_tokens']} tokens")
        if card.get("primary"):
            parts.append(f"judged by {', '.join(card['primary'])}")
        rows.append((benchmark_label(name), "; ".join(parts)))
    return rows


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    def written(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {written(item)}" for key, item in value.items())
        if isinstance(value, list | tuple):
            return ", ".join(written(item) for item in value)
        return value if isinstance(value, str) else json.dumps(value, default=str)

    return [(str(name).replace("_", " "), written(value)) for name, value in values.items()]


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours} h " if hours else "") + f"{minutes} min {rest} s"
