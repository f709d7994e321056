"""ScienceQA (Lu et al. 2022, https://arxiv.org/abs/2209.09513): 4,241 test questions, 2,017 of them with a picture.

The official reading is the script of LLaVA, which all later tables follow; lmms-eval's accepts less. LLaVA's number is
`scienceqa/acc`, its IMG column `scienceqa/img/acc`; the others are those of the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_align_eval.benchmark import Benchmark, Hub
from mllm_align_eval.benchmarks.files import PictureFolder, read_json
from mllm_align_eval.benchmarks.tables import Row, hub_rows
from mllm_align_eval.choice_readings import llava_scienceqa, lmms_scienceqa, vlmevalkit_choice
from mllm_align_eval.items import Answer, Item
from mllm_align_eval.metrics import Measures, mean

ORIGIN = "https://github.com/lupantech/ScienceQA (data/scienceqa)"
IMAGES = "the folder of pictures that https://github.com/lupantech/ScienceQA downloads (test/<number>/image.png)"
COLUMNS = ("question", "choices", "answer", "hint", "image", "subject", "grade")
SUFFIX = "\nAnswer with the option's letter from the given choices directly."
LETTERS = ("A", "B", "C", "D", "E")
SUBJECTS = {"natural": "natural science", "social": "social science", "language": "language science"}
GRADES = {"grade_1_6": range(1, 7), "grade_7_12": range(7, 13)}


def scienceqa_items(folder: Path, pictures: PictureFolder) -> list[Item]:
    """The test questions of problems.json by pid_splits.json."""
    problems, splits = (read_json(folder / name, ORIGIN) for name in ("problems.json", "pid_splits.json"))
    if (
        not isinstance(problems, dict)
        or not isinstance(splits, dict)
        or not set(splits.get("test", ())) <= set(problems)
    ):
        raise ValueError(f"{folder}: pid_splits.json and problems.json do not go together; get both from {ORIGIN}")
    names = [str(name) for name in splits.get("test", ())]
    rows = (_row(f"{folder / 'problems.json'}, problem {name}", name, problems[name]) for name in names)
    items = items_of(zip(names, rows, strict=True), pictures)
    pictures.check(picture.name for item in items for picture in item.pictures)
    return items


def scienceqa_hub_items(rows: Sequence[Mapping[str, Any]]) -> list[Item]:
    """The test questions of the Hub's copy, by their place in it."""
    return items_of(((str(index), row) for index, row in enumerate(hub_rows(rows))), PictureFolder(None, IMAGES))


def items_of(rows: Iterable[tuple[str, Row]], pictures: PictureFolder) -> list[Item]:
    """The questions of a table, by name.

    Raises:
        ValueError: Naming the row that is no question.
    """
    items = []
    for name, row in rows:
        values = row.values
        choices = values.get("choices") or ()
        if not set(COLUMNS) - {"image"} <= values.keys() or values["answer"] not in range(
            min(len(choices), len(LETTERS))
        ):
            raise ValueError(f"{row.where}: not a question with {', '.join(COLUMNS)} and up to {len(LETTERS)} choices")
        context = f"Context: {values['hint']}\n" if values["hint"] else ""
        options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
        items.append(
            Item(
                id=f"scienceqa/{name}",
                benchmark="scienceqa",
                split="img" if row.name else "no_img",
                kind=str(values["subject"]),
                cluster=f"scienceqa/{name}",
                prompt=f"{context}{values['question']}\n{options}{SUFFIX}",
                pictures=(row.picture(pictures),) if row.name else (),
                choices=LETTERS[: len(choices)],
                answer=LETTERS[values["answer"]],
                labels=tuple(choices),
                truth={"grade": int(str(values["grade"]).removeprefix("grade")), "has_text": bool(values["hint"])},
            )
        )
    return items


def scienceqa_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """`scienceqa/acc`, and by column of the paper: natural, social, language, text, img, no_context and grades.

    Text is that a question has a hint, no context that it has neither hint nor picture. Where there are only questions
    with a picture (the IMG subset), `scienceqa/img/acc` is all there is.
    """

    def is_shown(item: Item) -> bool:
        return item.split == "img"

    columns: dict[str, Callable[[Item], bool]] = {"img/": is_shown}
    if not all(map(is_shown, items)):
        columns[""] = lambda item: True
        columns["text/"] = lambda item: item.truth["has_text"]
        columns["no_context/"] = lambda item: not item.truth["has_text"] and not is_shown(item)
        for name, subject in SUBJECTS.items():
            columns[f"{name}/"] = lambda item, subject=subject: item.kind == subject
        for name, grades in GRADES.items():
            columns[f"{name}/"] = lambda item, grades=grades: item.truth["grade"] in grades
    found: Measures = {}
    for name, belongs in columns.items():
        members = [item for item in items if belongs(item)]
        if members:
            found[f"scienceqa/{name}acc"] = mean(members, lambda item: answers[item.id].right)
    return found


def _row(where: str, name: str, values: Any) -> Row:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: not an object with {', '.join(COLUMNS)}")
    return Row(where, values, f"test/{name}/{values['image']}" if values.get("image") else "")


SCIENCEQA = Benchmark(
    name="scienceqa",
    title="ScienceQA (Lu et al., 2022): school science, with and without pictures",
    origin=ORIGIN,
    image_origin=IMAGES,
    files=("problems.json", "pid_splits.json"),
    read=scienceqa_items,
    score=scienceqa_score,
    primary="scienceqa/img/acc",
    readings={"official": llava_scienceqa, "lmms-eval": lmms_scienceqa, "vlmevalkit": vlmevalkit_choice},
    hub=(Hub("lmms-lab/ScienceQA", scienceqa_hub_items, name="ScienceQA-FULL"),),
)
