"""The published metrics of benchmarks, computed from a model's answers under every picture arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mllm_align_eval.benchmark import STRICT, Benchmark
from mllm_align_eval.items import Answer, ImageArm, Item, Method
from mllm_align_eval.measures import ABLATIONS, GENERATED
from mllm_align_eval.metrics import Measures


def published_measures(
    items: Sequence[Item],
    answers: Mapping[tuple[Method, ImageArm], Sequence[Answer]],
    benchmarks: Mapping[str, Benchmark],
    parser: str = STRICT,
) -> Measures:
    """The metrics of each benchmark of which every question of a kind of answer was asked.

    Keys are the benchmark's own, with `_other_image`, `_blank_image` or `_no_image` where the picture was not the
    question's, and `_generated` for generated texts.

    Args:
        items: All items of the run.
        answers: Per method and image arm the answers of one model.
        benchmarks: By name; items of others have no published metrics.
        parser: By whose rules generated texts were read. Log-probabilities need no reading, so theirs are strict.
    """
    found: Measures = {}
    for (method, image), given in answers.items():
        said = {entry.item: entry for entry in given}
        for name, benchmark in benchmarks.items():
            asked = [item for item in items if item.benchmark == name and item.id in said]
            if not asked:
                continue
            rules = parser if method == "generate" and parser in benchmark.parsers else STRICT
            ending = "" if image == "right" else f"_{ABLATIONS[image]}_image"
            ending += GENERATED if method == "generate" else ""
            found |= {key + ending: measure for key, measure in benchmark.score(asked, said, rules).items()}
    return found
