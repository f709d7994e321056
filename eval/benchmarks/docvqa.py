"""DocVQA (Mathew et al. 2021, https://arxiv.org/abs/2007.00398): questions about scanned pages, answered by reading.

The validation split has answers (5,349 questions); those of the test split are kept by the Robust Reading Competition.
Scored by ANLS: "strict" is the paper's formula on texts without white space around them. "official" is the
competition's script and "vlmevalkit" the same rule: a text at exactly half the distance counts 0.5, and the length is
that of the texts as they came while the distance is not, so a padded text gains. "lmms-eval" strips the answer first.

The page is the cluster.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_align_eval.answers import Parsed, parse
from mllm_align_eval.benchmark import STRICT, Benchmark, Hub
from mllm_align_eval.benchmarks.files import PictureFolder, read_json
from mllm_align_eval.benchmarks.tables import Row, hub_rows
from mllm_align_eval.items import Answer, Item, Picture
from mllm_align_eval.metrics import Measures, mean
from mllm_align_eval.text_metrics import anls, anls_rrc

ORIGIN = "https://rrc.cvc.uab.es/?ch=17&com=downloads (task 1, val_v1.0_withQT.json)"
IMAGES = "https://rrc.cvc.uab.es/?ch=17&com=downloads (task 1, images; the folder that holds documents/)"
FILES = ("val_v1.0_withQT.json", "val_v1.0.json")
# As lmms-eval and VLMEvalKit ask it.
SUFFIX = "\nAnswer the question using a single word or phrase."
ANSWERS, GROUPS = "answers", "groups"


def docvqa_items(folder: Path, pictures: PictureFolder) -> list[Item]:
    """The questions of `val_v1.0_withQT.json` (or `val_v1.0.json`, which lacks the types of questions)."""
    rows = question_rows(folder, FILES, ORIGIN)
    items = text_items("docvqa", ((row, pictures(str(row.values["image"]))) for row in rows), ("question_types",))
    pictures.check(picture.name for item in items for picture in item.pictures)
    return items


def docvqa_hub_items(rows: Sequence[Mapping[str, Any]]) -> list[Item]:
    """The questions of the Hub's copy; a page is known by its document and number."""
    nowhere = PictureFolder(None, IMAGES)
    shown = []
    for row in hub_rows(rows):
        page = f"{row.values['ucsf_document_id']}_{row.values['ucsf_document_page_no']}"
        shown.append((row, Picture(page, row.picture(nowhere).load)))
    return text_items("docvqa", shown, ("question_types",))


def question_rows(folder: Path, files: Sequence[str], origin: str, image: str = "image") -> list[Row]:
    """The rows under `data` of the first of some files that is there.

    Raises:
        FileNotFoundError: If none is.
        ValueError: Naming the file, or the row that has no image.
    """
    path = next((folder / name for name in files if (folder / name).is_file()), folder / files[0])
    content = read_json(path, origin)
    data = content.get("data") if isinstance(content, Mapping) else None
    if not isinstance(data, list) or not data:
        raise ValueError(f"{path} has no list of questions under data; get it from {origin}")
    rows = []
    for number, values in enumerate(data):
        if not isinstance(values, Mapping) or not isinstance(values.get(image), str):
            raise ValueError(f"{path}, question {number}: no {image}")
        rows.append(Row(f"{path}, question {number}", values, values[image]))
    return rows


def text_items(name: str, rows: Iterable[tuple[Row, Picture]], groups: Sequence[str]) -> list[Item]:
    """Open questions with their answers.

    Args:
        name: Of the benchmark.
        rows: {questionId, question, answers} and the picture of each.
        groups: Columns that sort questions into groups, each a list of names; a row may lack them.

    Raises:
        ValueError: Naming the row that is no question with answers; those of the test split have none.
    """
    items = []
    for row, picture in rows:
        values = row.values
        answers = values.get("answers")
        if "questionId" not in values or not isinstance(values.get("question"), str):
            raise ValueError(f"{row.where}: no questionId and question")
        if not isinstance(answers, list) or not answers or not all(isinstance(text, str) for text in answers):
            raise ValueError(f"{row.where}: no list of answers (only the validation split can be scored here)")
        names = [name for column in groups for name in values.get(column) or ()]
        items.append(
            Item(
                id=f"{name}/{values['questionId']}",
                benchmark=name,
                split="validation",
                kind="text",
                cluster=picture.name,
                prompt=values["question"] + SUFFIX,
                pictures=(picture,),
                truth={ANSWERS: tuple(answers), GROUPS: tuple(re.sub(r"\W+", "_", name.lower()) for name in names)},
            )
        )
    return items


def anls_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """`<benchmark>/anls`, `<benchmark>/exact` (no distance at all), and ANLS by group of questions."""
    similarity: Callable[[str, Iterable[str]], float] = anls if parser == STRICT else anls_rrc
    said = {item.id: answers[item.id].text for item in items}
    if parser == "lmms-eval":
        said = {name: text.strip() for name, text in said.items()}
    score = {item.id: similarity(said[item.id], item.truth[ANSWERS]) for item in items}
    name = items[0].benchmark
    found = {
        f"{name}/anls": mean(items, lambda item: score[item.id]),
        f"{name}/exact": mean(items, lambda item: float(score[item.id] == 1)),
    }
    for group in sorted({group for item in items for group in item.truth[GROUPS]}):
        members = [item for item in items if group in item.truth[GROUPS]]
        found[f"{name}/{group}/anls"] = mean(members, lambda item: score[item.id])
    return found


def as_it_is(text: str, item: Item) -> Parsed:
    """Open answers are compared as they are; no harness reads a choice in them."""
    return parse(text, item)


READINGS = {"official": as_it_is, "lmms-eval": as_it_is, "vlmevalkit": as_it_is}

DOCVQA = Benchmark(
    name="docvqa",
    title="DocVQA (Mathew et al., 2021), validation: reading scanned pages",
    origin=ORIGIN,
    image_origin=IMAGES,
    files=FILES,
    read=docvqa_items,
    score=anls_score,
    readings=READINGS,
    primary="docvqa/anls",
    max_new_tokens=32,
    hub=(Hub("lmms-lab/DocVQA", docvqa_hub_items, split="validation", name="DocVQA"),),
)
