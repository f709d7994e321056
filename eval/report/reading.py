"""What became of the answers that models wrote: how many could be read, how many were cut, and when to worry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm_align_eval.report.labels import arm_inline, number
from mllm_align_eval.report.metric_names import benchmark_label, parse_key

# A run of which more than this share of the written answers was lost says little about the model.
LIMIT = 0.02
SHARES = ("unreadable", "abstained", "errors", "truncated", "truncated_unreadable")


def reading_of(results: Mapping[str, Any], arm: str, metric: str) -> dict[str, float] | None:
    """The shares of the written answers that a metric is computed from; None for log-probabilities.

    Those of its split, or of all splits of its benchmark where it is of several.
    """
    key = parse_key(metric)
    if not key.generated or key.picture:
        return None
    splits = (results.get("reading") or {}).get(arm, {})
    if f"{key.benchmark}/{key.split}" in splits:
        return splits[f"{key.benchmark}/{key.split}"]
    return _together([cell for name, cell in splits.items() if name.split("/")[0] == key.benchmark])


def by_benchmark(results: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Per benchmark and arm the shares of its written answers; open and closed questions apart."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for arm, splits in (results.get("reading") or {}).items():
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for name, cell in splits.items():
            groups.setdefault(name.split("/")[0], []).append(cell)
        for benchmark, cells in groups.items():
            sorts = {True: "descriptions", False: "questions"} if len({c["open"] for c in cells}) > 1 else {}
            for is_open in dict.fromkeys(bool(cell["open"]) for cell in cells):
                label = benchmark_label(benchmark) + (f", {sorts[is_open]}" if sorts else "")
                shares = _together([cell for cell in cells if bool(cell["open"]) == is_open])
                found.setdefault(label, {})[arm] = (shares or {}) | {"open": is_open}
    return found


def warnings(results: Mapping[str, Any]) -> list[str]:
    """One sentence for each benchmark and arm of which more than 2 % of the written answers were lost or cut.

    Lost are those that no rule could read and those that the model failed to give. A cut answer to a closed question
    may still have been read; a cut description mentions less, so that it has less to be wrong about.
    """
    found = []
    for benchmark, arms in by_benchmark(results).items():
        for arm, shares in arms.items():
            who = f"{benchmark}, {arm_inline(arm)}"
            if shares["errors"] > 0:
                found.append(f"{who}: the model failed on {number('', shares['errors'])} % of the questions.")
            if shares["unreadable"] > LIMIT:
                lost = "are empty" if shares["open"] else "could not be read and count as wrong"
                cut = shares["truncated_unreadable"] > 0
                among = f" ({number('', shares['truncated_unreadable'])} % were cut)" if cut else ""
                found.append(f"{who}: {number('', shares['unreadable'])} % of the written answers {lost}{among}.")
            if shares["truncated"] > LIMIT:
                effect = (
                    "a cut text mentions less, and has less to be wrong about"
                    if shares["open"]
                    else "what was read of them is the head alone"
                )
                found.append(
                    f"{who}: {number('', shares['truncated'])} % of the written answers were cut at the limit of "
                    f"their length; {effect}."
                )
    return found


def _together(cells: list[Any]) -> dict[str, float] | None:
    total = sum(cell["n"] for cell in cells)
    if not total:
        return None
    return {"n": total} | {name: sum(cell[name] * cell["n"] for cell in cells) / total for name in SHARES}
