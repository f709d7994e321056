"""MMVP (Tong et al. 2024, https://arxiv.org/abs/2401.06209) from its Questions.csv: images that CLIP mixes up.

Consecutive questions are a pair: two pictures, one question, two answers. A pair counts if both are right, so chance
is a quarter and a constant answer gets nothing. The pair is the cluster. The published script has GPT-4 grade free
text, so there is no official reading; Cambrian-1, S-VCO, lmms-eval and VLMEvalKit have a rule each. Numbers per pair
and per question go under one name in papers: here they are `pair_acc` and `pair_item_acc`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_align_eval.benchmark import Benchmark, Hub
from mllm_align_eval.benchmarks.files import PictureFolder, require_file
from mllm_align_eval.benchmarks.tables import hub_rows
from mllm_align_eval.choice_readings import cambrian_choice, lmms_mmvp, svco_choice, vlmevalkit_choice
from mllm_align_eval.items import Answer, Item, Picture
from mllm_align_eval.metrics import Measure, Measures, mean
from mllm_align_eval.statistics import mean_metric

ORIGIN = "https://huggingface.co/datasets/MMVP/MMVP"
COLUMNS = ("Index", "Question", "Options", "Correct Answer")
# Questions of which the published answers are the wrong way round, by the corrected copy lmms-lab-eval/MMVP.
SWAPPED = (99, 100, 279, 280)
LETTERS = ("(a)", "(b)")

Question = tuple[int, str, tuple[str, str], str]


def mmvp_items(folder: Path, pictures: PictureFolder) -> list[Item]:
    """The questions of MMVP, asked with their options as published: "... (a) Open (b) Closed".

    Args:
        folder: Holds Questions.csv.
        pictures: `1.jpg` to `300.jpg` ("MMVP Images" in the published archive).
    """
    questions = read_questions(require_file(folder / "Questions.csv", ORIGIN))
    items = [_item(question, pictures(f"{question[0]}.jpg")) for question in questions]
    pictures.check(picture.name for item in items for picture in item.pictures)
    return items


def mmvp_hub_items(rows: Sequence[Mapping[str, Any]]) -> list[Item]:
    """The questions of the Hub's copy; its corrections are undone, as those are kept beside the published answers."""
    items = []
    for row in hub_rows(rows):
        index, question, options, answer = _question(row.values, row.where)
        published = _other(answer) if index in SWAPPED else answer
        items.append(_item((index, question, options, published), row.picture(PictureFolder(None, ORIGIN))))
    return items


def read_questions(path: Path) -> list[Question]:
    """Index, question, the wording of both options, and "(a)" or "(b)".

    Raises:
        ValueError: Naming the line that cannot be read.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if not set(COLUMNS) <= set(reader.fieldnames or ()):
            raise ValueError(f"{path} has not the columns {', '.join(COLUMNS)}")
        return [_question(row, f"{path}, line {reader.line_num}") for row in reader]


def _question(row: Mapping[str, Any], where: str) -> Question:
    options = re.fullmatch(r"\s*\(a\)\s*(.+?)\s*\(b\)\s*(.+?)\s*", str(row["Options"]))
    index, answer = str(row["Index"]), str(row["Correct Answer"]).strip()
    if not options or answer not in LETTERS or not index.isdigit():
        raise ValueError(f"{where}: not a question with options (a) and (b)")
    return int(index), str(row["Question"]).strip(), (options[1], options[2]), answer


def _item(question: Question, shown: Picture) -> Item:
    index, text, options, answer = question
    pair = f"mmvp/{(index + 1) // 2}"
    return Item(
        id=f"mmvp/{index}",
        benchmark="mmvp",
        split="pairs",
        kind="pair",
        cluster=pair,
        prompt=f"{text} (a) {options[0]} (b) {options[1]}",
        pictures=(shown,),
        choices=LETTERS,
        answer=answer,
        pair=pair,
        labels=options,
        truth={"corrected": _other(answer) if index in SWAPPED else answer},
    )


def _other(answer: str) -> str:
    return LETTERS[1 - LETTERS.index(answer)]


def mmvp_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """`mmvp/pair_acc`, both questions of a pair right, and `mmvp/pair_item_acc`, each on its own.

    `mmvp/corrected/...` is the same by the corrected answers to two pairs, which lmms-eval uses. Which of the two are
    right is disputed, so both are given. Pairs of which one question was not asked count for nothing.
    """
    published = {item.id: answers[item.id].right for item in items}
    corrected = {item.id: answers[item.id].choice == item.truth["corrected"] for item in items}
    found: Measures = {}
    for name, right in (("mmvp", published), ("mmvp/corrected", corrected)):
        pairs = _pairs(items, right)
        found |= {f"{name}/pair_acc": pairs} if pairs.clusters else {}
        found[f"{name}/pair_item_acc"] = mean(items, lambda item, right=right: right[item.id])
    return found


def _pairs(items: Iterable[Item], right: Mapping[str, bool]) -> Measure:
    pairs: dict[str, list[bool]] = {}
    for item in items:
        pairs.setdefault(item.cluster, []).append(right[item.id])
    whole = {pair: float(all(both)) for pair, both in pairs.items() if len(both) == 2}
    return Measure(mean_metric(list(whole.values())), tuple(whole))


MMVP = Benchmark(
    name="mmvp",
    title="MMVP (Tong et al., 2024): pairs of images that CLIP takes for one",
    origin=ORIGIN,
    image_origin=ORIGIN,
    files=("Questions.csv",),
    read=mmvp_items,
    score=mmvp_score,
    primary="mmvp/pair_acc",
    readings={
        "lmms-eval": lmms_mmvp,
        "vlmevalkit": vlmevalkit_choice,
        "cambrian": cambrian_choice,
        "s-vco": svco_choice,
    },
    hub=(Hub("lmms-lab-eval/MMVP", mmvp_hub_items, split="train"),),
)
