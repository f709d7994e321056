"""What an arm of the regions study is asked: the task, retrieval by region features, and the world's questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation import test_items
from mllm_align.objectives import RegionContrast
from mllm_align_eval.benchmarks.docvqa import ANSWERS
from mllm_align_eval.benchmarks.world_correspondence import correspondence_items
from mllm_align_eval.benchmarks.world_documents import document_items
from mllm_align_eval.items import Item
from mllm_align_eval.runner import answer
from mllm_align_eval.text_metrics import anls
from region_arms import TASKS
from region_features import Part, measured
from view_evaluation import colour_items, retrieval_parts

BATCH = 100
NUM_TEST, NUM_VALIDATION, NUM_RETRIEVED = 300, 100, 200
# The world's questions, to see whether anything was lost.
KEPT = ("in_distribution", "adversarial", "existence", "pairs")


def region_retrieval(
    model: Any, processor: Any, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], batch_size: int = 50
) -> Part:
    """R@1: of each region, whether its nearest one by cosine in the other pictures of its row is the same thing.

    Nothing but the image tokens that a region covers is compared; no text is read, and nothing is written.

    Args:
        model: As it is, put into evaluation mode.
        processor: Its processor.
        rows: With `objects` that have ids, in two or more pictures of the columns.
        columns: Image columns whose regions are compared.
        batch_size: Rows at a time.

    Returns:
        Per region that has a partner and another candidate 1.0 or 0.0; the row is the cluster.
    """
    objective = RegionContrast(tuple(columns), negatives="pair")
    found = Part([], [])
    for batch, signals in measured(model, processor, objective, rows, batch_size):
        positive, negative = objective.pairs(signals.regions, "cpu")
        takes_part = (positive.any(dim=1) & negative.any(dim=1)).tolist()
        own = [batch.row_ids[row] for regions in signals.regions.values() for row in regions.row]
        found.values.extend(objective(signals, None).metrics["accuracy"].tolist())
        found.clusters.extend(name for name, kept in zip(own, takes_part, strict=True) if kept)
    return found


def task_parts(model: Any, processor: Any, task: str, level: str, split: str) -> dict[str, Part]:
    """The task's own questions: of correspondence `accuracy`, and `both` of a pair; of documents `anls`, `exact`.

    Of views `mean_view`, `worst_third` and `worst_view` of retrieval, and in the test whether the `colour` is told.
    """
    if task == "views":
        found = retrieval_parts(model, processor, split, level)
        if split == "test":
            items = colour_items(split, level)
            found["colour"] = Part(_right(model, processor, items), [item.cluster for item in items])
        return found
    number = NUM_TEST if split == "test" else NUM_VALIDATION
    if task == "correspondence":
        items = correspondence_items(number, split=split, levels=(level,))
        right = _right(model, processor, items)
        both = [first * second for first, second in zip(right[::2], right[1::2], strict=True)]
        clusters = [item.cluster for item in items]
        return {"accuracy": Part(right, clusters), "both": Part(both, clusters[::2])}
    items = document_items(number // 2, split=split, papers=(level,))
    given = answer(model, processor, items, batch_size=BATCH, identity="study", max_new_tokens=4)
    score = [anls(said.text, item.truth[ANSWERS]) for said, item in zip(given, items, strict=True)]
    clusters = [item.cluster for item in items]
    return {"anls": Part(score, clusters), "exact": Part([float(value == 1) for value in score], clusters)}


def test_parts(model: Any, processor: Any, task: str, level: str) -> dict[str, Part]:
    """The task's own parts, `retrieval` of tasks with columns, and as `world/...` what every base was trained for."""
    found = task_parts(model, processor, task, level, "test")
    if TASKS[task].columns:
        rows = TASKS[task].rows(NUM_RETRIEVED, 0, "test", level)
        found["retrieval"] = region_retrieval(model, processor, rows, TASKS[task].columns)
    for split in KEPT:
        items = test_items()[split]
        found[f"world/{split}"] = Part(_right(model, processor, items), [item.cluster for item in items])
    return found


def validation_score(model: Any, processor: Any, task: str, level: str) -> float:
    """The one number by which settings are chosen: the first of the task's own, on pictures that no test has."""
    parts = task_parts(model, processor, task, level, "validation")
    values = next(iter(parts.values())).values
    return sum(values) / len(values)


def _right(model: Any, processor: Any, items: Sequence[Item]) -> list[float]:
    given = answer(model, processor, items, method="logprob", batch_size=BATCH, identity="study")
    return [float(entry.right) for entry in given]


def packed(parts: Mapping[str, Part]) -> dict[str, dict[str, list[float]]]:
    """Values, and clusters by number, as small JSON."""
    found = {}
    for name, part in parts.items():
        numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(part.clusters))}
        found[name] = {
            "values": [round(value, 4) for value in part.values],
            "clusters": [numbers[cluster] for cluster in part.clusters],
        }
    return found
