"""MMVP (Tong et al. 2024, https://arxiv.org/abs/2401.06209) from its Questions.csv: images that CLIP mixes up.

Consecutive questions are a pair: two pictures, one question, two answers. A pair counts if both are right, so chance
is a quarter and a constant answer gets nothing. The pair is the cluster.
"""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

from mllm_align_eval.benchmarks.files import annotation_folder, image_loaders, require_file
from mllm_align_eval.items import Item

ORIGIN = "https://huggingface.co/datasets/MMVP/MMVP"
COLUMNS = ("Index", "Question", "Options", "Correct Answer")
# Questions of which the published answers are the wrong way round, by the corrected copy lmms-lab-eval/MMVP.
SWAPPED = (99, 100, 279, 280)
LETTERS = ("(a)", "(b)")


def mmvp_items(
    image_folder: str | os.PathLike[str], annotations: str | os.PathLike[str] | None = None, corrected: bool = False
) -> list[Item]:
    """The questions of MMVP, asked with their options as published: "... (a) Open (b) Closed".

    Args:
        image_folder: Holds `1.jpg` to `300.jpg` ("MMVP Images" in the published archive).
        annotations: Folder of `Questions.csv`; `$MLLM_ALIGN_DATA/mmvp` if None.
        corrected: Whether the answers of two pairs that are disputed are swapped.

    Raises:
        FileNotFoundError: If annotations or images are missing; it says where they come from.
        ValueError: If the file is not MMVP's.
    """
    folder = annotation_folder(annotations, "mmvp", ORIGIN)
    path = require_file(folder / "Questions.csv", ORIGIN)
    rows = read_questions(path)
    loaders = image_loaders(image_folder, [f"{index}.jpg" for index, *_ in rows], ORIGIN)
    items = []
    for index, question, options, answer in rows:
        if corrected and index in SWAPPED:
            answer = LETTERS[1 - LETTERS.index(answer)]
        pair = f"mmvp/{(index + 1) // 2}"
        items.append(
            Item(
                id=f"mmvp/{index}",
                benchmark="mmvp",
                split="pairs",
                kind="pair",
                cluster=pair,
                prompt=f"{question} (a) {options[0]} (b) {options[1]}",
                choices=LETTERS,
                answer=answer,
                load_image=loaders[f"{index}.jpg"],
                pair=pair,
                labels=options,
            )
        )
    return items


def read_questions(path: Path) -> list[tuple[int, str, tuple[str, str], str]]:
    """Index, question, the wording of both options, and "(a)" or "(b)".

    Raises:
        ValueError: Naming the line that cannot be read.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if not set(COLUMNS) <= set(reader.fieldnames or ()):
            raise ValueError(f"{path} has not the columns {', '.join(COLUMNS)}")
        rows = []
        for row in reader:
            options = re.fullmatch(r"\s*\(a\)\s*(.+?)\s*\(b\)\s*(.+?)\s*", row["Options"])
            answer = row["Correct Answer"].strip()
            if not options or answer not in LETTERS or not row["Index"].isdigit():
                raise ValueError(f"{path}, line {reader.line_num}: not a question with options (a) and (b)")
            rows.append((int(row["Index"]), row["Question"].strip(), (options[1], options[2]), answer))
    return rows
