"""What became of the answers that models wrote: how many could be read, how many were cut, and when to worry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mllm_align_eval.report.labels import arm_inline, number
from mllm_align_eval.report.metric_names import benchmark_label, parse_key

# A run of which more than this share of the written answers was lost says little about the model.
LIMIT = 0.02
SHARES = ("unreadable", "empty", "abstained", "errors", "truncated", "truncated_unreadable")
MISSING, UNREAD, CUT = "missing", "unread", "cut"


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
    """One sentence on what was lost, and one on what to do, for each benchmark and arm that lost answers.

    Missing are those that the model failed to give, unread those that no rule could read, and cut those that reached
    the limit of their length; of the latter two a share of up to 2 % is let pass. A cut answer to a closed question
    may still have been read; a cut description mentions less, so that it has less to be wrong about.
    """
    return [text for _, text in _lost(results)]


def warning_head(results: Mapping[str, Any]) -> str:
    """What the warnings have in common, for a line above them; "" where there are none."""
    kinds = list(dict.fromkeys(kind for kind, _ in _lost(results)))
    if kinds in ([], [MISSING]):
        return "Warning: answers are missing" if kinds else ""
    limit = f"{LIMIT:.0%}".replace("%", " %")
    return f"Warning: more than {limit} of the answers were lost: {' and '.join(kinds)}"


def _lost(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Kind and text of each warning."""
    for benchmark, arms in by_benchmark(results).items():
        for arm, shares in arms.items():
            who = f"{benchmark}, {arm_inline(arm)}"
            if shares["errors"] > 0:
                yield MISSING, f"{who}: {_missing(shares)}"
            if shares["unreadable"] > LIMIT:
                yield UNREAD, f"{who}: {_unread(shares)}"
            if shares["truncated"] > LIMIT:
                yield CUT, f"{who}: {_cut(shares)}"


def _missing(shares: Mapping[str, float]) -> str:
    return (
        f"the model failed on {number('', shares['errors'])} % of the questions, and these count as wrong. Mend what "
        "it failed with and give the same command: only they are asked again."
    )


def _unread(shares: Mapping[str, float]) -> str:
    percent = number("", shares["unreadable"])
    if shares["open"]:
        return (
            f"{percent} % of the written answers are empty. A model that writes nothing was given another chat "
            "template than its own, or was trained to end at once: look at its answers with and without the adapter."
        )
    parts = {"empty": "were empty", "truncated_unreadable": "were cut"}
    among = ", ".join(f"{number('', shares[name])} % {what}" for name, what in parts.items() if shares[name] > 0)
    return (
        f"{percent} % of the written answers could not be read and count as wrong{f' ({among})' if among else ''}. "
        "Look at some: if they do answer, only in other words, another --parser may read them, and scores by "
        "log-probability do not depend on the words."
    )


def _cut(shares: Mapping[str, float]) -> str:
    effect = (
        "a cut text mentions less, and has less to be wrong about"
        if shares["open"]
        else "what was read of them is the head alone"
    )
    return (
        f"{number('', shares['truncated'])} % of the written answers were cut at the limit of their length; {effect}. "
        "Give them more room with --max-new-tokens."
    )


def _together(cells: list[Any]) -> dict[str, float] | None:
    total = sum(cell["n"] for cell in cells)
    if not total:
        return None
    return {"n": total} | {name: sum(cell.get(name, 0.0) * cell["n"] for cell in cells) / total for name in SHARES}
