"""Signal detection in words: whether the model sees better or only says yes less readily."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm_align_eval.report.comparison import Roles, compare
from mllm_align_eval.report.labels import number

MEASURES = (
    ("dprime", "d\N{PRIME}"),
    ("criterion", "criterion c"),
    ("yes_rate", "yes, %"),
    ("auc", "AUC"),
)
POLL = "world/pope_adversarial"


def detection_text(results: Mapping[str, Any]) -> str:
    """Reads sensitivity and threshold of the adversarial existence polling; empty where they were not measured.

    A change of accuracy with an unchanged d' is a shift of the threshold for saying yes. The sensitivity d' =
    z(hits) - z(false alarms) and the criterion c = -(z(hits) + z(false alarms)) / 2 are those of Macmillan and
    Creelman, Detection Theory, 2005.
    """
    roles = Roles.of(results["arms"])
    sensitivity = compare(results, roles.after, roles.before, f"{POLL}/dprime")
    if sensitivity is None:
        return ""
    accuracy = compare(results, roles.after, roles.before, f"{POLL}/acc")
    criterion = compare(results, roles.after, roles.before, f"{POLL}/criterion")
    span = f"{number(sensitivity.metric, sensitivity.second)} to {number(sensitivity.metric, sensitivity.first)}"
    if sensitivity.clear > 0:
        verdict = f"Sensitivity rises from {span}: the aligned model tells present from absent better."
    elif sensitivity.clear < 0:
        verdict = f"Sensitivity falls from {span}: the aligned model tells present from absent less well."
    else:
        verdict = f"Sensitivity goes from {span}, which is no clear change."
        if accuracy and accuracy.clear:
            verdict += " What accuracy moved is a shift of the threshold for saying yes, not sight."
    if criterion is None:
        return verdict
    threshold = f"{number(criterion.metric, criterion.second)} to {number(criterion.metric, criterion.first)}"
    if criterion.clear:
        direction = "less" if criterion.clear > 0 else "more"
        return f"{verdict} The criterion moves from {threshold}: it says yes {direction} readily than before."
    return f"{verdict} The criterion goes from {threshold}, which is no clear change."


def detection_table(results: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Column heads and, per arm, the measures as written; no rows where nothing was measured."""
    arms = results["arms"]
    used = [(suffix, label) for suffix, label in MEASURES if any(f"{POLL}/{suffix}" in arms[arm] for arm in arms)]
    rows = []
    for arm, cells in arms.items():
        metrics = [f"{POLL}/{suffix}" for suffix, _ in used]
        if any(metric in cells for metric in metrics):
            rows.append((arm, [number(m, cells[m]["value"]) if m in cells else number(m, None) for m in metrics]))
    return [label for _, label in used], rows
