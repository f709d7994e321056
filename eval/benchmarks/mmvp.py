"""MMVP (Tong et al. 2024, https://arxiv.org/abs/2401.06209) from its Questions.csv: images that CLIP mixes up.

Consecutive questions are a pair: two pictures, one question, two answers. A pair counts if both are right, so chance
is a quarter and a constant answer gets nothing. The pair is the cluster.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mllm_align_eval.benchmark import Benchmark
from mllm_align_eval.benchmarks.files import PictureFolder, require_file
from mllm_align_eval.items import Answer, Item
from mllm_align_eval.metrics import Measure, Measures, mean
from mllm_align_eval.statistics import mean_metric

ORIGIN = "https://huggingface.co/datasets/MMVP/MMVP"
COLUMNS = ("Index", "Question", "Options", "Correct Answer")
# Questions of which the published answers are the wrong way round, by the corrected copy lmms-lab-eval/MMVP.
SWAPPED = (99, 100, 279, 280)
LETTERS = ("(a)", "(b)")


def mmvp_items(folder: Path, pictures: PictureFolder, corrected: bool = False) -> list[Item]:
    """The questions of MMVP, asked with their options as published: "... (a) Open (b) Closed".

    Args:
        folder: Holds Questions.csv.
        pictures: `1.jpg` to `300.jpg` ("MMVP Images" in the published archive).
        corrected: Whether the answers of two pairs that are disputed are swapped.
    """
    items = []
    for index, question, options, answer in read_questions(require_file(folder / "Questions.csv", ORIGIN)):
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
                pictures=(pictures(f"{index}.jpg"),),
                choices=LETTERS,
                answer=answer,
                pair=pair,
                labels=options,
            )
        )
    pictures.check(picture.name for item in items for picture in item.pictures)
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


def mmvp_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """`mmvp/pair_acc`, both questions of a pair right, and `mmvp/pair_item_acc`, each on its own."""
    right = [answers[item.id].right for item in items]
    both = [float(a and b) for a, b in zip(right[::2], right[1::2], strict=True)]
    pairs = Measure(mean_metric(both), tuple(item.cluster for item in items[::2]))
    return {"mmvp/pair_acc": pairs, "mmvp/pair_item_acc": mean(items, lambda item: answers[item.id].right)}


MMVP = Benchmark(
    name="mmvp",
    title="MMVP (Tong et al., 2024): pairs of images that CLIP takes for one",
    origin=ORIGIN,
    image_origin=ORIGIN,
    read=mmvp_items,
    score=mmvp_score,
)
