"""Signal detection in words: whether the model sees better or only says yes less readily."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm_align_eval.report.comparison import Change, Roles, compare, finite
from mllm_align_eval.report.labels import arm_inline, interval, number
from mllm_align_eval.report.leading import benchmarks_of, primary
from mllm_align_eval.report.metric_names import benchmark_label, parse_key

MEASURES = (
    ("acc", "accuracy, %"),
    ("dprime", "d\N{PRIME}"),
    ("criterion", "criterion c"),
    ("yes_rate", "yes, %"),
    ("auc", "AUC"),
)


def polls(results: Mapping[str, Any], benchmark: str) -> list[str]:
    """The splits of yes/no questions, as `<benchmark>/<split>`; the one to read first is first.

    That is the adversarial one, or else that of the metric that the benchmark is judged by.
    """
    found = dict.fromkeys(
        metric.removesuffix("/dprime")
        for cells in results["arms"].values()
        for metric in cells
        if metric.endswith("/dprime") and parse_key(metric).benchmark == benchmark
    )
    judged = {parse_key(metric).split for metric in primary(results, benchmark)}
    return sorted(found, key=lambda poll: ("adversarial" not in poll, poll.split("/", 1)[1] not in judged))


def detection_texts(results: Mapping[str, Any]) -> list[str]:
    """Reads sensitivity and threshold of each benchmark's first split of yes/no questions; of one model alone nothing.

    A change of accuracy with an unchanged d' is a shift of the threshold for saying yes. The sensitivity d' =
    z(hits) - z(false alarms) and the criterion c = -(z(hits) + z(false alarms)) / 2 are those of Macmillan and
    Creelman, Detection Theory, 2005.
    """
    roles = Roles.of(results["arms"])
    if roles.after == roles.before:
        return []
    texts = [_text(results, roles, poll) for name in benchmarks_of(results) for poll in polls(results, name)[:1]]
    return [text for text in texts if text]


def detection_table(results: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, str, list[str]]]]:
    """Column heads and, per split and arm, the measures as written; no rows where nothing was measured."""
    arms = results["arms"]
    places = [poll for name in benchmarks_of(results) for poll in polls(results, name)]
    used = [(m, label) for m, label in MEASURES if any(f"{p}/{m}" in arms[arm] for p in places for arm in arms)]
    rows = []
    for poll in places:
        for arm, cells in arms.items():
            metrics = [f"{poll}/{measure}" for measure, _ in used]
            if any(metric in cells for metric in metrics):
                written = [number(m, cells[m]["value"] if m in cells else None) for m in metrics]
                rows.append((poll_label(poll), arm, written))
    return [label for _, label in used], rows


def poll_label(poll: str) -> str:
    """What a split is called."""
    benchmark, _, split = poll.partition("/")
    # The world polls as POPE does.
    split = split.replace("pope_", "polling ") if benchmark == "world" else split
    return f"{benchmark_label(benchmark)}, {split.replace('_', ' ')}"


def _text(results: Mapping[str, Any], roles: Roles, poll: str) -> str:
    sensitivity = compare(results, roles.after, roles.before, f"{poll}/dprime")
    if sensitivity is None:
        return ""
    accuracy = compare(results, roles.after, roles.before, f"{poll}/acc")
    criterion = compare(results, roles.after, roles.before, f"{poll}/criterion")
    span, after = _span(sensitivity), arm_inline(roles.after)
    if sensitivity.clear > 0:
        verdict = f"Sensitivity rises from {span}: the model ({after}) tells yes cases from no cases better."
    elif sensitivity.clear < 0:
        verdict = f"Sensitivity falls from {span}: the model ({after}) tells yes cases from no cases less well."
    else:
        verdict = f"Sensitivity goes from {span}, which is no clear change."
        if accuracy and accuracy.clear:
            verdict += " What accuracy moved is a shift of the threshold for saying yes, not sight."
    parts = [f"{poll_label(poll)}. {verdict}"]
    if criterion is not None and criterion.clear:
        direction = "less" if criterion.clear > 0 else "more"
        parts.append(f"The criterion moves from {_span(criterion)}: it says yes {direction} readily than before.")
    elif criterion is not None:
        parts.append(f"The criterion goes from {_span(criterion)}, which is no clear change.")
    return " ".join([*parts, *_explained(results, roles, poll, accuracy)])


def _explained(results: Mapping[str, Any], roles: Roles, poll: str, accuracy: Change | None) -> list[str]:
    """How much of the change of accuracy moving the criterion alone would have brought."""
    cell = results.get("criterion_shift", {}).get(f"{roles.after}-{roles.before}", {}).get(poll)
    if accuracy is None or not cell or not finite(cell.get("value")):
        return []
    metric = f"{poll}/acc"
    bounds = interval(metric, cell, signed=True)
    return [
        f"Change of accuracy explained by the criterion's shift: {number(metric, cell['value'], signed=True)} of "
        f"{number(metric, accuracy.difference, signed=True)} points{f' (95 % interval {bounds})' if bounds else ''}; "
        "the rest is sensitivity."
    ]


def _span(change: Change) -> str:
    return f"{number(change.metric, change.second)} to {number(change.metric, change.first)}"
