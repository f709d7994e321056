"""MMVP-VLM (Tong et al. 2024, https://arxiv.org/abs/2401.06209): does a dual encoder tell two images apart by a text?

135 pairs of images in 9 visual patterns, 15 each, with a statement per image. For each statement the two images
compete, and a pair is right if both statements find their image; chance is a quarter. The pair is the cluster; with 15
pairs a pattern has an interval of 23 points to each side.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mllm_align_eval.benchmark import OFFICIAL, Benchmark
from mllm_align_eval.benchmarks.captions import caption_item, read_as_is, rows_of_scores
from mllm_align_eval.benchmarks.files import PictureFolder, require_file
from mllm_align_eval.items import Answer, Item
from mllm_align_eval.metrics import Measure, Measures
from mllm_align_eval.statistics import mean_metric

ORIGIN = "https://huggingface.co/datasets/MMVP/MMVP_VLM (Questions.csv)"
IMAGES = "https://huggingface.co/datasets/MMVP/MMVP_VLM (MMVP_VLM_Images)"
PREFIX = "a photo of "


def mmvp_vlm_items(folder: Path, pictures: PictureFolder) -> list[Item]:
    """A row of two scores per image: of the statement about the first image of its pair, and about the second.

    Questions.csv has a heading and then number, pattern and statement; images are `<pattern>/<number>.jpg`.
    """
    rows = _read(require_file(folder / "Questions.csv", ORIGIN))
    items = []
    for pair, (first, second) in enumerate(zip(rows[::2], rows[1::2], strict=True), start=1):
        captions = [PREFIX + first[2], PREFIX + second[2]]
        # The script looks for both images in the folder of the first one's pattern.
        kind, split = first[1], re.sub(r"\W+", "_", first[1].strip().lower())
        for side, (number, _, _) in enumerate((first, second)):
            name, cluster = f"mmvp_vlm/{number}", f"mmvp_vlm/pair_{pair}"
            items.append(caption_item(name, split, kind, cluster, pictures(f"{kind}/{number}.jpg"), captions, side))
    pictures.check(picture.name for item in items for picture in item.pictures)
    return items


def _read(path: Path) -> list[tuple[int, str, str]]:
    """Number, pattern and statement of each row.

    Raises:
        ValueError: Naming the line that cannot be read; if a pair is not whole or not in order.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        next(reader, None)
        rows = []
        for row in reader:
            if len(row) != 3 or not row[0].strip().isdigit():
                raise ValueError(f"{path}, line {reader.line_num}: not a number, a pattern and a statement ({ORIGIN})")
            if int(row[0]) % 2 == len(rows) % 2:
                raise ValueError(f"{path}, line {reader.line_num}: pairs are an odd number and then an even one")
            rows.append((int(row[0]), row[1], row[2]))
    if not rows or len(rows) % 2:
        raise ValueError(f"{path} has {len(rows)} statements, which is not two per pair")
    return rows


def mmvp_vlm_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """Pairs of which both statements score higher with their own image: `pair_acc`, in all and by pattern.

    Two equal scores are wrong, and `tied` counts their pairs. The authors' script takes the second image then (its
    share of a softmax over both is not above a half), which is right for the second statement, so a constant score
    gets nothing either way.
    """
    scores = rows_of_scores(items, answers)
    if not scores:
        return {}
    images: dict[str, list[Item]] = {}
    for item in items:
        images.setdefault(item.cluster, []).append(item)
    whole = {name: two for name, two in images.items() if len(two) == 2}
    right: dict[str, dict[str, float]] = {}
    for name, (first, second) in whole.items():
        (a, b), (c, d) = scores[first.id], scores[second.id]
        both = a > c and (d > b or (parser == OFFICIAL and d == b))
        right.setdefault(first.split, {})[name] = float(both)
    everything = {name: value for part in right.values() for name, value in part.items()}
    found = {"mmvp_vlm/pair_acc": Measure(mean_metric(list(everything.values())), tuple(everything))}
    for split, part in right.items():
        found[f"mmvp_vlm/{split}/pair_acc"] = Measure(mean_metric(list(part.values())), tuple(part))
    return found


def tied_pairs(items: Sequence[Item], answers: Mapping[str, Answer]) -> Measures:
    """By pattern, `mmvp_vlm/<pattern>/tied`: the pairs whose images have equal scores for one of the statements."""
    images: dict[str, list[Item]] = {}
    for item in items:
        images.setdefault(item.cluster, []).append(item)
    level: dict[str, dict[str, float]] = {}
    for name, members in images.items():
        columns = zip(*(answers[item.id].scores for item in members), strict=True)
        tied = len(members) == 2 and any(first == second for first, second in columns)
        level.setdefault(members[0].split, {})[name] = float(tied)
    return {
        f"mmvp_vlm/{split}/tied": Measure(mean_metric(list(part.values())), tuple(part))
        for split, part in level.items()
    }


MMVP_VLM = Benchmark(
    name="mmvp_vlm",
    title="MMVP-VLM (Tong et al., 2024): pairs of images told apart by a statement",
    origin=ORIGIN,
    image_origin=IMAGES,
    files=("Questions.csv",),
    read=mmvp_vlm_items,
    score=mmvp_vlm_score,
    readings={"official": read_as_is},
    primary="mmvp_vlm/pair_acc",
    ties=tied_pairs,
)
