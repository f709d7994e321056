"""Zero-shot classification of your own images: each class is a text, and the nearest text is the answer.

As CLIP does it (Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 3.1.4): a class name is put into
several templates, the vectors of these texts are averaged, and the direction of the mean stands for the class.

A folder of classes, `<class>/<picture>`, or `images.csv` with the columns image and class, whose pictures
lie beside it or in --images. Two further files may be there: `classes.json`, an object of what each class is
called in words ({"n01440764": "tench"}; without it underscores become spaces), whose classes without pictures compete
too; and `templates.txt`, one template a line with {} for the name, in place of `SIMPLE`.

Chance is 1 / classes, at five 5 / classes. A class that is level with the true one stands before it, so a constant
score gets nothing, and `zero_shot/images/tied` counts these images. The image is the cluster.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mllm_align_eval.benchmark import Benchmark
from mllm_align_eval.benchmarks.captions import PROMPT, rows_of_scores, tied_rows
from mllm_align_eval.benchmarks.files import PictureFolder, read_json, require_file
from mllm_align_eval.items import Answer, Item
from mllm_align_eval.matrices import NUM_SCORES, TEMPLATES
from mllm_align_eval.metrics import Measures, mean, mean_over_groups

NAME, SPLIT = "zero_shot", "images"
TABLE, CLASSES, OWN_TEMPLATES = "images.csv", "classes.json", "templates.txt"
ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "JPEG", "JPG", "PNG")
# The seven of OpenAI's list that did best together on ImageNet, as open_clip has them in zero_shot_metadata.py.
SIMPLE = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
FIVE = 5
ORIGIN = "your own images: a folder per class, or images.csv with the columns image and class"


def zero_shot_items(folder: Path, pictures: PictureFolder) -> list[Item]:
    """A row of as many scores as there are classes for each image, in the order of the classes.

    Raises:
        FileNotFoundError: If there is no image.
        ValueError: If fewer than two classes are there or two have one name, a class is not in classes.json, or a
            template has no {}.
    """
    rows = list(_table(folder / TABLE) if (folder / TABLE).is_file() else _class_folders(folder))
    if not rows:
        raise FileNotFoundError(f"no image in {folder}: needed is {ORIGIN.removeprefix('your own images: ')}")
    names = _names(folder / CLASSES, sorted({label for _, label in rows}))
    choices, templates = tuple(names.values()), _templates(folder / OWN_TEMPLATES)
    truth = {NUM_SCORES: len(choices), TEMPLATES: templates}
    pictures.check(image for image, _ in rows)
    return [
        Item(
            id=f"{NAME}/{image}",
            benchmark=NAME,
            split=SPLIT,
            kind=label,
            cluster=image,
            prompt=PROMPT,
            pictures=(pictures(image),),
            choices=choices,
            answer=names[label],
            truth=truth,
        )
        for image, label in rows
    ]


def _table(path: Path) -> Iterator[tuple[str, str]]:
    """Image and class of each line."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            image, label = row.get("image"), row.get("class")
            if not image or not label:
                raise ValueError(f"{path}, line {reader.line_num}: no image and class, which line 1 names")
            yield image, label


def _class_folders(folder: Path) -> Iterator[tuple[str, str]]:
    """The pictures of each folder, named from where the folders are."""
    for path in sorted({path for ending in ENDINGS for path in folder.glob(f"*/*.{ending}")}):
        yield path.relative_to(folder).as_posix(), path.parent.name


def _names(path: Path, labels: Sequence[str]) -> dict[str, str]:
    """What each class is called in words."""
    names = {label: label.replace("_", " ") for label in labels}
    if path.is_file():
        names = read_json(path, ORIGIN)
        if not isinstance(names, dict) or not all(isinstance(name, str) and name for name in names.values()):
            raise ValueError(f"{path} is not an object of names by class")
        lacking = [label for label in labels if label not in names]
        if lacking:
            raise ValueError(f"{path} has no name for {len(lacking)} classes (first: {lacking[0]!r})")
    twice = next((name for name in names.values() if list(names.values()).count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two classes are called {twice!r}: give each a name of its own in {path}")
    if len(names) < 2:
        raise ValueError(f"{path.parent} has one class alone, {labels[0]!r}: there is nothing to choose from")
    return names


def _templates(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return SIMPLE
    lines = [line for line in require_file(path, ORIGIN).read_text(encoding="utf-8").splitlines() if line.strip()]
    wrong = next((line for line in lines if "{}" not in line), None)
    if wrong is not None or not lines:
        raise ValueError(f"{path}: a template needs {{}} where the name goes, got {wrong or 'no line'!r}")
    return tuple(lines)


def zero_shot_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """`top1_acc`, `top5_acc` where there are more classes than five, and `macro_acc`, the mean over classes."""
    scores = rows_of_scores(items, answers)
    return class_accuracies(NAME, items, scores) if scores else {}


def zero_shot_chance(items: Sequence[Item]) -> dict[str, float]:
    """The metrics of a class that is drawn."""
    return class_chance(NAME, len(items[0].choices))


def class_accuracies(head: str, items: Sequence[Item], scores: Mapping[str, Sequence[float]]) -> Measures:
    """`<head>/top1_acc`, `/top5_acc` and `/macro_acc` of images that have the same classes.

    Args:
        head: What the keys begin with.
        items: One per image; `kind` is the class, of which `macro_acc` is the mean.
        scores: By item id those of its choices.
    """
    place = {choice: index for index, choice in enumerate(items[0].choices)}
    ranks = {item.id: _rank(scores[item.id], place[item.answer]) for item in items}
    found = {f"{head}/top1_acc": mean(items, lambda item: float(ranks[item.id] == 1))}
    if len(place) > FIVE:
        found[f"{head}/top5_acc"] = mean(items, lambda item: float(ranks[item.id] <= FIVE))
    return found | {f"{head}/macro_acc": mean_over_groups(items, lambda item: float(ranks[item.id] == 1))}


def class_chance(head: str, num_classes: int) -> dict[str, float]:
    """What `class_accuracies` come to where one of so many classes is drawn."""
    found = dict.fromkeys((f"{head}/top1_acc", f"{head}/macro_acc"), 1 / num_classes)
    return found | ({f"{head}/top5_acc": FIVE / num_classes} if num_classes > FIVE else {})


def _rank(scores: Sequence[float], right: int) -> int:
    """Of the right class, behind all that are level with it; from 1."""
    row = np.asarray(scores)
    return int((row >= row[right]).sum())


ZERO_SHOT = Benchmark(
    name=NAME,
    title="Zero-shot classification: your own classes, each the mean of several templates (Radford et al., 2021)",
    origin=ORIGIN,
    image_origin="beside images.csv, or a folder per class",
    read=zero_shot_items,
    score=zero_shot_score,
    primary=f"{NAME}/top1_acc",
    files=(TABLE, *(f"*/*.{ending}" for ending in ENDINGS)),
    pictures_beside=True,
    ties=tied_rows,
    chance=zero_shot_chance,
)
