"""POPE (Li et al. 2023, https://arxiv.org/abs/2305.10355) from its annotation files: is there a {object} in the image?

Each split asks six questions about each of 500 COCO val2014 images, so the image is the cluster. The splits overlap:
their 9,000 questions are 5,127 different ones. A text-only reader who knows which objects are asked about gets up to
87 % on the popular split; accuracy under another and under no image belongs beside every number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_align_eval.benchmark import Benchmark, Hub
from mllm_align_eval.benchmarks.files import PictureFolder, read_lines
from mllm_align_eval.benchmarks.tables import hub_rows
from mllm_align_eval.items import YES_NO, Answer, Item, Picture
from mllm_align_eval.metrics import Measures, by_split, f1, mean, mean_of
from mllm_align_eval.readings import exact_yes_no, pope_official, word_yes_no

SPLITS = ("random", "popular", "adversarial")
ORIGIN = "https://github.com/AoiDragon/POPE (output/coco)"
IMAGES = "COCO val2014, http://images.cocodataset.org/zips/val2014.zip"
# As LLaVA's scripts ask it.
SUFFIX = "\nAnswer the question using a single word or phrase."
COLUMNS = ("question_id", "image", "text", "label")


def pope_hub_items(rows: Sequence[Mapping[str, Any]]) -> list[Item]:
    """The questions of the copy lmms-lab/POPE, of all three splits."""
    return [
        _item(own["category"], own["question_id"], image, own["question"], own["answer"], Picture(image, row.load))
        for row in hub_rows(rows)
        for own, image in [(row.values, row.values["image_source"])]
        if row.load is not None
    ]


def _item(split: str, number: Any, image: str, question: str, label: str, picture: Picture) -> Item:
    return Item(
        id=f"pope/{split}/{number}",
        benchmark="pope",
        split=split,
        kind="existence",
        cluster=image,
        prompt=question + SUFFIX,
        pictures=(picture,),
        choices=YES_NO,
        answer=label,
    )


def pope_items(folder: Path, pictures: PictureFolder) -> list[Item]:
    """The questions of the splits of which there is a file `coco_pope_<split>.json`; at least one must be there."""
    there = [split for split in SPLITS if (folder / f"coco_pope_{split}.json").is_file()] or SPLITS[:1]
    items = []
    for split in there:
        path = folder / f"coco_pope_{split}.json"
        for number, row in read_lines(path, COLUMNS, ORIGIN):
            if row["label"] not in YES_NO:
                raise ValueError(f"{path}, line {number}: label {row['label']!r} is neither yes nor no")
            image = row["image"]
            items.append(_item(split, row["question_id"], image, row["text"], row["label"], pictures(image)))
    pictures.check(item.cluster for item in items)
    return items


def pope_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """Accuracy, precision, recall and F1 of yes, and the share of yes, by split and, of all three, over all questions.

    `pope/f1_mean3`, the mean over the splits, is LLaVA's column; `pope/f1` and `pope/acc` are those of lmms-eval's
    `pope` and of VLMEvalKit's "Overall". An answer that cannot be read is wrong. VLMEvalKit counts it as a no in F1;
    lmms-eval leaves it out of F1.
    """

    def says(item: Item) -> bool:
        return answers[item.id].choice == "yes"

    def is_yes(item: Item) -> bool:
        return item.answer == "yes"

    found: Measures = {}
    splits = by_split(items)
    groups = {f"pope/{split}": members for split, members in splits.items()}
    if splits.keys() >= set(SPLITS):
        groups["pope"] = list(items)
    for head, members in groups.items():
        read = [item for item in members if parser != "lmms-eval" or answers[item.id].choice is not None]
        parts = {"acc": mean(members, lambda item: answers[item.id].right), "yes_rate": mean(members, says)}
        parts |= f1(read, says, is_yes) if read else {}
        found |= {f"{head}/{name}": measure for name, measure in parts.items()}
    scores = [found[f"pope/{split}/f1"] for split in SPLITS if f"pope/{split}/f1" in found]
    if len(scores) == len(SPLITS):
        found["pope/f1_mean3"] = mean_of(scores)
    return found


POPE = Benchmark(
    name="pope",
    title="POPE (Li et al., 2023): whether an object is in the image",
    origin=ORIGIN,
    image_origin=IMAGES,
    files=("coco_pope_*.json",),
    read=pope_items,
    score=pope_score,
    primary="pope/adversarial/acc",
    hub=(Hub("lmms-lab/POPE", pope_hub_items),),
    readings={"official": pope_official, "lmms-eval": exact_yes_no, "vlmevalkit": word_yes_no},
)
