"""AMBER (Wang et al. 2023, https://arxiv.org/abs/2311.07397): descriptions and yes/no questions about 1,004 images.

14,216 questions ask for existence (every answer is no), attributes and relations; "no" is the positive class of
precision, recall and F1. A constant "No" has an F1 of 79.7, above LLaVA-1.5's published 74.7: read accuracy by
dimension and the share of yes beside it. `read` takes whichever query files are there. The questions carry
VLMEvalKit's request for yes or no, because the published script takes nothing but "Yes" or "No" to the letter.

Harnesses: VLMEvalKit has the questions alone and reports the mean of three accuracies (`acc_mean3`); lmms-eval has the
descriptions alone. How descriptions are scored without a tagger and word vectors: `amber_text`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mllm_align_eval.benchmark import OFFICIAL, Benchmark
from mllm_align_eval.benchmarks.amber_text import Associations, description_measures, with_start
from mllm_align_eval.benchmarks.files import PictureFolder, read_json
from mllm_align_eval.items import YES_NO, Answer, Item
from mllm_align_eval.metrics import Measure, Measures, by_kind, by_split, f1, mean, mean_of
from mllm_align_eval.readings import capital_yes_no, word_yes_no
from mllm_align_eval.statistics import Array, Metric, ratio

ORIGIN = "https://github.com/junyangwang0410/AMBER (data and data/query)"
IMAGES = "the link to the images in https://github.com/junyangwang0410/AMBER"
DIMENSIONS = ("existence", "attribute", "relation")
GENERATIVE = "generative"
SUFFIX = "\nPlease answer yes or no."
# By the type of an annotation its dimension and what is asked for. Relations that are not there have a type of another
# form.
TYPES = {
    "generative": (GENERATIVE, "description"),
    "discriminative-hallucination": ("existence", "existence"),
    "discriminative-attribute-state": ("attribute", "state"),
    "discriminative-attribute-number": ("attribute", "number"),
    "discriminative-attribute-action": ("attribute", "action"),
    "discriminative-relation": ("relation", "relation"),
    "relation": ("relation", "relation"),
}


def amber_items(folder: Path, pictures: PictureFolder) -> list[Item]:
    """The descriptions and questions of the query files that are there; at least one must be."""
    truths = _annotations(folder / "annotations.json")
    names = {dimension: f"query_discriminative-{dimension}.json" for dimension in DIMENSIONS}
    names[GENERATIVE] = "query_generative.json"
    there = [part for part, name in names.items() if (folder / name).is_file()] or [DIMENSIONS[0]]
    associations = Associations.read(folder, ORIGIN) if GENERATIVE in there else None
    items = []
    for part in there:
        for row, truth in _queries(folder / names[part], truths):
            dimension, kind = TYPES[truth["type"]]
            if dimension != part:
                raise ValueError(f"{folder / names[part]}: question {row['id']} is one of {dimension}, not of {part}")
            closed = part != GENERATIVE
            items.append(
                Item(
                    id=f"amber/{row['id']}",
                    benchmark="amber",
                    split=part,
                    kind=kind,
                    cluster=row["image"],
                    prompt=row["query"] + (SUFFIX if closed else ""),
                    pictures=(pictures(row["image"]),),
                    choices=YES_NO if closed else (),
                    answer=truth["truth"] if closed else "",
                    truth={} if closed else {**truth, "associations": associations},
                )
            )
    pictures.check(item.cluster for item in items)
    return items


def amber_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """Accuracy, precision, recall, F1 of "no" by dimension and over all, those of descriptions, and the AMBER score.

    By official rules denominators have the script's 0.001, precision and recall are rounded to a tenth of a per cent
    before F1, and what is undefined is 0; by the others it is NaN. An answer that cannot be read is wrong and no "no".
    """
    dimensions = by_split(items)
    found: Measures = {}
    described = dimensions.pop(GENERATIVE, None)
    for split, members in dimensions.items():
        kinds = by_kind(members)
        # The script counts each kind of attribute from 0.001 and adds these up for all attributes.
        parts = _yes_no(members, answers, parser, 1e-3 * len(kinds), 1e-3 if split == "existence" else 1e-4)
        found |= {f"amber/{split}/{name}": measure for name, measure in parts.items()}
        for kind, some in kinds.items() if len(kinds) > 1 else ():
            parts = _yes_no(some, answers, parser)
            found |= {f"amber/{split}/{kind}_{name}": measure for name, measure in parts.items()}
    if dimensions.keys() >= set(DIMENSIONS):
        questions = [item for members in dimensions.values() for item in members]
        parts = _yes_no(questions, answers, parser)
        found |= {f"amber/discriminative/{name}": measure for name, measure in parts.items()}
        found["amber/acc_mean3"] = mean_of([found[f"amber/{split}/acc"] for split in DIMENSIONS])
    if described is not None:
        parts = description_measures(described, answers, parser)
        found |= {f"amber/{GENERATIVE}/{name}": measure for name, measure in parts.items()}
        if "amber/discriminative/f1" in found:
            kept = with_start(found["amber/generative/chair_exact"], 0.0, rest=True)
            found["amber/amber_score_exact"] = mean_of([kept, found["amber/discriminative/f1"]])
    return found


def _yes_no(
    items: Sequence[Item], answers: Mapping[str, Answer], parser: str, start: float = 1e-3, epsilon: float = 1e-4
) -> Measures:
    """Metrics of some questions; the published script's denominators start at `start`, that of F1 at `epsilon`."""

    def says_no(item: Item) -> bool:
        return answers[item.id].choice == "no"

    def is_no(item: Item) -> bool:
        return item.answer == "no"

    parts = {"acc": mean(items, lambda item: answers[item.id].right), **f1(items, says_no, is_no)}
    if parser == OFFICIAL:
        parts = {
            name: _official_f1(measure, start, epsilon) if name == "f1" else with_start(measure, start)
            for name, measure in parts.items()
        }
    parts["yes_rate"] = mean(items, lambda item: answers[item.id].choice == "yes")
    return parts


def _official_f1(measure: Measure, start: float, epsilon: float) -> Measure:
    def harmonic(totals: Array) -> Array:
        shares = (ratio(totals[..., [0, column]] + np.array([0.0, start])) for column in (1, 2))
        precision, recall = (np.round(100 * share, 1) / 100 for share in shares)
        return 2 * precision * recall / (precision + recall + epsilon)

    return Measure(Metric(measure.metric.columns, harmonic), measure.clusters)


def _annotations(path: Path) -> dict[int, Mapping[str, Any]]:
    content = read_json(path, ORIGIN)
    if not isinstance(content, list):
        raise ValueError(f"{path} is no list of annotations; get it from {ORIGIN}")
    found: dict[int, Mapping[str, Any]] = {}
    for number, row in enumerate(content):
        if not isinstance(row, Mapping) or row.get("type") not in TYPES or not _is_truth(row):
            raise ValueError(f"{path}: entry {number} has not an id, a known type and a truth of it")
        found[row["id"]] = row
    return found


def _is_truth(row: Mapping[str, Any]) -> bool:
    if row["type"] == GENERATIVE:
        return "id" in row and isinstance(row.get("truth"), list) and isinstance(row.get("hallu"), list)
    return "id" in row and row.get("truth") in YES_NO


def _queries(path: Path, truths: Mapping[int, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    rows = read_json(path, ORIGIN)
    if not isinstance(rows, list):
        raise ValueError(f"{path} is no list of questions; get it from {ORIGIN}")
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or not {"id", "image", "query"} <= row.keys():
            raise ValueError(f"{path}: entry {number} has not id, image and query")
        if row["id"] not in truths:
            raise ValueError(f"{path}: question {row['id']} has no annotation")
        yield row, truths[row["id"]]


AMBER = Benchmark(
    name="amber",
    title="AMBER (Wang et al., 2023): existence, attributes and relations, asked for and described",
    origin=ORIGIN,
    image_origin=IMAGES,
    files=("annotations.json", "query_*.json"),
    read=amber_items,
    score=amber_score,
    readings={"official": capital_yes_no, "vlmevalkit": word_yes_no},
    primary="amber/discriminative/acc",
    max_new_tokens=512,
    describes=True,
)
