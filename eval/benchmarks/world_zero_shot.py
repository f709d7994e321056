"""Zero-shot classification on the rendered world: which shape, which colour, and which of both together?

180 pictures of one object, five of each of six shapes in each of six colours, all of test splits; seven of the
combinations are held out of the world's training. Each picture is asked three times (`shape`, `colour`,
`shape_and_colour`), each class being the mean of several templates as in `zero_shot`. Templates are in words of the
world's own language, which has few, and say by turns what is not asked for (place, size, shape), so that their mean
leaves it open.

Classes are equally frequent, so `macro_acc` is `top1_acc` where none is resampled. Chance at K is K / classes: 1 / 6
for shapes and for colours, 1 / 36 for both. A tie is wrong. The picture is the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mllm_align.data.world import SMALL, World, class_rows
from mllm_align_eval.benchmark import Benchmark
from mllm_align_eval.benchmarks.captions import rows_of_scores, tied_rows
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.world_retrieval import picture_of
from mllm_align_eval.benchmarks.zero_shot import class_accuracies, class_chance
from mllm_align_eval.items import Answer, Item
from mllm_align_eval.matrices import NUM_SCORES, TEMPLATES
from mllm_align_eval.metrics import Measures, by_split, mean_of

NAME = "world_zero_shot"
TASKS = ("shape", "colour", "shape_and_colour")
MEAN = f"{NAME}/top1_acc_mean{len(TASKS)}"
# "a orange ring" is how the world's captions say it.
OF_OBJECTS = (
    "a {}",
    "there is a {}",
    "you see a {} in the picture",
    *(f"a {size} {{}} on the {side}" for size in ("small", "large") for side in ("left", "right")),
)
OF_COLOURS = ("it is {}", "the colour is {}", "you see a {} one in the picture")


def class_items(num_each: int = 5, *, seed: int = 0, world: World = SMALL) -> list[Item]:
    """A row of scores of all classes for each picture and task; `num_each` pictures of each shape in each colour."""
    rows = class_rows(num_each, seed, world=world)
    both = tuple(f"{colour} {shape}" for shape in world.shapes for colour in world.colours)
    colours = (*OF_COLOURS, *(f"a {{}} {shape}" for shape in world.shapes))
    classes = {"shape": world.shapes, "colour": world.colours, "shape_and_colour": both}
    templates = {"shape": OF_OBJECTS, "colour": colours, "shape_and_colour": OF_OBJECTS}
    found = []
    for task in TASKS:
        truth = {NUM_SCORES: len(classes[task]), TEMPLATES: templates[task]}
        for row in rows:
            answer = row[task] if task in row else f"{row['colour']} {row['shape']}"
            found.append(
                Item(
                    id=f"{NAME}/{task}/{row['id']}",
                    benchmark=NAME,
                    split=task,
                    kind=answer,
                    cluster=row["id"],
                    prompt=row["prompt"],
                    pictures=(picture_of(row),),
                    choices=classes[task],
                    answer=answer,
                    truth=truth,
                )
            )
    return found


def class_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """By task `top1_acc`, `top5_acc` and `macro_acc`; the plain mean of `top1_acc` over the tasks."""
    scores, found = rows_of_scores(items, answers), {}
    for task, members in by_split(items).items() if scores else ():
        found |= class_accuracies(f"{NAME}/{task}", members, scores)
    parts = [found[key] for task in TASKS if (key := f"{NAME}/{task}/top1_acc") in found]
    return found | ({MEAN: mean_of(parts)} if len(parts) == len(TASKS) else {})


def chance(items: Sequence[Item]) -> dict[str, float]:
    """The metrics of classes that are drawn."""
    sizes = {task: len(members[0].choices) for task, members in by_split(items).items()}
    found = {key: value for task, size in sizes.items() for key, value in class_chance(f"{NAME}/{task}", size).items()}
    return found | ({MEAN: sum(1 / size for size in sizes.values()) / len(TASKS)} if len(sizes) == len(TASKS) else {})


def _read(folder: Path, pictures: PictureFolder) -> list[Item]:
    return class_items()


WORLD_ZERO_SHOT = Benchmark(
    name=NAME,
    title="Rendered world, zero-shot classification: shape, colour and both of one object in 180 pictures",
    origin="",
    image_origin="",
    read=_read,
    score=class_score,
    primary=MEAN,
    ties=tied_rows,
    chance=chance,
)
