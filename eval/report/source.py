"""Whether the scores that a headline speaks of are of probabilities or of what the models wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm_align_eval.report.leading import benchmarks_of, primary
from mllm_align_eval.report.metric_names import GENERATED, MEASURES, WRITTEN, benchmark_label, parse_key

PROBABLE = "which of the possible answers the model finds most probable (by log-probability), not what it would write"


def source_text(results: Mapping[str, Any]) -> str:
    """One sentence for those who have not met log-probabilities; "" where nothing is judged.

    Args:
        results: As described in `mllm_align_eval.report`.
    """
    judged = [metric for benchmark in benchmarks_of(results) for metric in primary(results, benchmark)]
    judged = [metric for metric in judged if parse_key(metric).measure]
    written = list(dict.fromkeys(parse_key(metric).benchmark for metric in judged if is_written(metric)))
    probable = [metric for metric in judged if not is_written(metric)]
    if not judged:
        return ""
    if results.get("scores") == "similarity":
        return "These scores compare the cosines of embeddings; nothing was written."
    if not probable:
        return "These scores are of the answers as the model wrote them."
    if written:
        names = ", ".join(map(benchmark_label, written))
        return f"The scores of {names} are of the answers as the model wrote them; the others say {PROBABLE}."
    apart = any(metric + GENERATED in cells for metric in probable for cells in results["arms"].values())
    return f"These scores say {PROBABLE}" + ("; what it wrote is scored apart." if apart else ".")


def is_written(metric: str) -> bool:
    """Whether a metric is of texts that a model wrote."""
    key = parse_key(metric)
    return key.generated or key.benchmark in WRITTEN or (key.measure in MEASURES and MEASURES[key.measure].text)
