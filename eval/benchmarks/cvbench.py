"""CV-Bench (Tong et al. 2024, https://arxiv.org/abs/2406.16860): counting, relations, depth and distance in pictures.

2,638 questions, each about one picture of ADE20K, COCO (2D) or Omni3D (3D). The authors average over sources, so a
question about Omni3D weighs more than one about COCO; lmms-eval counts all questions alike; VLMEvalKit has the 2D and
the 3D number and no joint one. Every metric that takes several sources together is left out where one of these is
absent, as in a part of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_align_eval.benchmark import Benchmark, Hub
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.tables import Row, hub_rows, table_rows
from mllm_align_eval.choice_readings import cambrian_first_letter, lmms_first_letter, svco_choice, vlmevalkit_choice
from mllm_align_eval.items import Answer, Item
from mllm_align_eval.metrics import Measure, Measures, by_kind, by_split, mean, mean_of

ORIGIN = "https://huggingface.co/datasets/nyu-visionx/CV-Bench"
COLUMNS = ("idx", "type", "task", "choices", "answer", "prompt", "source")
# As the authors ask it.
SUFFIX = "\nAnswer with the option's letter from the given choices directly."
SOURCES = {"2d": ("ade20k", "coco"), "3d": ("omni3d",)}
ALL_SOURCES = (*SOURCES["2d"], *SOURCES["3d"])


def cvbench_items(folder: Path, pictures: PictureFolder) -> list[Item]:
    """The questions of all `.jsonl` and `.parquet` files in the folder."""
    return items_of(table_rows(folder, COLUMNS, ORIGIN), pictures)


def cvbench_hub_items(rows: Sequence[Mapping[str, Any]]) -> list[Item]:
    """The questions of the published dataset."""
    return items_of(hub_rows(rows), PictureFolder(None, ORIGIN))


def items_of(rows: Iterable[Row], pictures: PictureFolder) -> list[Item]:
    """The questions of a table.

    Raises:
        ValueError: If a row's type, source or answer is not CV-Bench's, or a question is there twice.
        FileNotFoundError: If pictures are missing.
    """
    items: dict[str, Item] = {}
    files = []
    for row in rows:
        values = row.values
        split, source = str(values["type"]).lower(), str(values["source"]).lower()
        letters = tuple(f"({chr(ord('A') + index)})" for index in range(len(values["choices"])))
        if source not in SOURCES.get(split, ()) or values["answer"] not in letters:
            raise ValueError(
                f"{row.where}: no question of CV-Bench, with type {values['type']!r}, source {values['source']!r} and "
                f"answer {values['answer']!r} of {len(letters)} choices"
            )
        name = f"cvbench/{split}/{values['idx']}"
        if name in items:
            raise ValueError(f"{row.where}: question {values['idx']} of {split} is there a second time")
        items[name] = Item(
            id=name,
            benchmark="cvbench",
            split=split,
            kind=str(values["task"]).lower(),
            cluster=row.name or name,
            prompt=values["prompt"] + SUFFIX,
            pictures=(row.picture(pictures),),
            choices=letters,
            answer=values["answer"],
            labels=tuple(map(str, values["choices"])),
            truth={"source": source},
        )
        files += [row.name] if row.load is None else []
    pictures.check(files)
    return list(items.values())


def cvbench_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """`cvbench/official` = 1/2 (2d + 3d) with `cvbench/2d` = 1/2 (ade20k + coco), and `cvbench/acc` over questions.

    Further `cvbench/<source>/acc`, `cvbench/<source>/<task>/acc`, `cvbench/2d/acc` over its questions, and
    `cvbench/<task>/acc`.
    """

    def accuracy(members: Sequence[Item]) -> Measure:
        return mean(members, lambda item: answers[item.id].right)

    by_source: dict[str, list[Item]] = {}
    for item in items:
        by_source.setdefault(item.truth["source"], []).append(item)
    there = set(by_source)
    found: Measures = {}
    sums = {
        split: mean_of([accuracy(by_source[source]) for source in sources])
        for split, sources in SOURCES.items()
        if there.issuperset(sources)
    }
    if len(sums) == len(SOURCES):
        found["cvbench/official"] = mean_of(list(sums.values()))
        found["cvbench/acc"] = accuracy(items)
    found |= {f"cvbench/{split}": measure for split, measure in sums.items()}
    found |= {f"cvbench/{split}/acc": accuracy(of) for split, of in by_split(items).items() if split in sums}
    for task, members in by_kind(items).items():
        if members[0].split in sums:
            found[f"cvbench/{task}/acc"] = accuracy(members)
    for source in filter(there.__contains__, ALL_SOURCES):
        found[f"cvbench/{source}/acc"] = accuracy(by_source[source])
        for task, members in by_kind(by_source[source]).items():
            found[f"cvbench/{source}/{task}/acc"] = accuracy(members)
    return found


CVBENCH = Benchmark(
    name="cvbench",
    title="CV-Bench (Tong et al., 2024): counts, relations, depth and distance",
    origin=ORIGIN,
    image_origin=ORIGIN,
    files=("*.jsonl", "*.parquet"),
    read=cvbench_items,
    score=cvbench_score,
    primary="cvbench/official",
    readings={
        "official": cambrian_first_letter,
        "lmms-eval": lmms_first_letter,
        "vlmevalkit": vlmevalkit_choice,
        "s-vco": svco_choice,
    },
    hub=(Hub("nyu-visionx/CV-Bench", cvbench_hub_items, name="default"),),
)
