"""How often scores were level where it matters: such questions count as wrong, and many mean that vectors collapse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm_align_eval.report.labels import arm_inline
from mllm_align_eval.report.metric_names import benchmark_label, parse_key


def ties_text(cells: Mapping[str, Mapping[str, Any]]) -> str:
    """A sentence with the number of ties by benchmark; "" where scores are of no benchmark that can have them.

    Args:
        cells: By metric its value and number of units, those of other metrics too.
    """
    found: dict[str, list[int]] = {}
    for metric, cell in cells.items():
        key = parse_key(metric)
        if key.measure == "tied" and not key.picture and not key.scoring:
            counts = found.setdefault(key.benchmark, [0, 0])
            counts[0] += round(cell["value"] * cell["n"])
            counts[1] += cell["n"]
    parts = [f"{benchmark_label(name)} {tied:,} of {total:,}" for name, (tied, total) in found.items()]
    return f"Ties, which count as wrong: {', '.join(parts)}." if parts else ""


def ties_texts(results: Mapping[str, Any]) -> list[str]:
    """The sentence of each arm, where similarities were compared."""
    if results.get("scores") != "similarity":
        return []
    texts = {arm: ties_text(cells) for arm, cells in results["arms"].items()}
    return [f"{arm_inline(arm)}: {text}" for arm, text in texts.items() if text]
