"""POPE (Li et al. 2023, https://arxiv.org/abs/2305.10355) from its annotation files: is there a {object} in the image?

Each split asks six questions about each of 500 COCO val2014 images, so the image is the cluster. The splits overlap:
their 9,000 questions are 5,127 different ones. A text-only reader who knows which objects are asked about gets up to
87 % on the popular split; accuracy under another and under no image belongs beside every number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mllm_align_eval.benchmarks.files import annotation_folder, image_loaders, require_file
from mllm_align_eval.items import YES_NO, Item

SPLITS = ("random", "popular", "adversarial")
ORIGIN = "https://github.com/AoiDragon/POPE (output/coco)"
IMAGES = "COCO val2014, http://images.cocodataset.org/zips/val2014.zip"
SUFFIX = "\nAnswer the question using a single word or phrase."


def pope_items(
    image_folder: str | os.PathLike[str],
    annotations: str | os.PathLike[str] | None = None,
    splits: Sequence[str] = SPLITS,
    suffix: str = SUFFIX,
) -> list[Item]:
    """The questions of POPE.

    Args:
        image_folder: Holds the COCO val2014 images by their names.
        annotations: Folder of `coco_pope_<split>.json`; `$MLLM_ALIGN_DATA/pope` if None.
        splits: Which of random, popular, adversarial.
        suffix: What is added to each question. With the default, as LLaVA's scripts ask it.

    Raises:
        FileNotFoundError: If annotations or images are missing; it says where they come from.
        ValueError: If a split is unknown or a line is not a POPE question.
    """
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise ValueError(f"POPE has no split {unknown[0]!r}, only {', '.join(SPLITS)}")
    folder = annotation_folder(annotations, "pope", ORIGIN)
    rows = {split: read_questions(require_file(folder / f"coco_pope_{split}.json", ORIGIN)) for split in splits}
    names = [row["image"] for asked in rows.values() for row in asked]
    loaders = image_loaders(image_folder, names, IMAGES)
    return [
        Item(
            id=f"pope/{split}/{row['question_id']}",
            benchmark="pope",
            split=split,
            kind="existence",
            cluster=row["image"],
            prompt=row["text"] + suffix,
            choices=YES_NO,
            answer=row["label"],
            load_image=loaders[row["image"]],
        )
        for split, asked in rows.items()
        for row in asked
    ]


def read_questions(path: Path) -> list[dict[str, Any]]:
    """The lines of one annotation file.

    Raises:
        ValueError: Naming the line that is not a question with a yes/no label.
    """
    questions = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            complete = row.keys() >= {"question_id", "image", "text", "label"} and row["label"] in YES_NO
        except (json.JSONDecodeError, AttributeError):
            complete = False
        if not complete:
            raise ValueError(f"{path}, line {number}: not a POPE question (question_id, image, text, label yes or no)")
        questions.append(row)
    return questions
