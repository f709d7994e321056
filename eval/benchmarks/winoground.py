"""Winoground (Thrush et al. 2022, https://arxiv.org/abs/2204.03162): two images, two captions of the same words.

An example is four scores s(caption, image). Chance is a quarter for text and for image and a sixth for both; people
get 89.5, 88.5 and 85.5. The example is the cluster. Its data are gated, for research alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_align_eval.benchmark import Benchmark, Hub
from mllm_align_eval.benchmarks.captions import caption_item, read_as_is, rows_of_scores, texts_of
from mllm_align_eval.benchmarks.files import PictureFolder, read_lines
from mllm_align_eval.benchmarks.tables import hub_rows
from mllm_align_eval.items import Answer, Item, Picture
from mllm_align_eval.metrics import Measure, Measures
from mllm_align_eval.statistics import mean_metric

ORIGIN = "https://huggingface.co/datasets/facebook/winoground (data/examples.jsonl; gated)"
IMAGES = "https://huggingface.co/datasets/facebook/winoground (data/images.zip; gated)"
CAPTIONS = ("caption_0", "caption_1")
IMAGE_COLUMNS = ("image_0", "image_1")
CHANCE = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}
COLUMNS = ("id", *IMAGE_COLUMNS, *CAPTIONS)


def winoground_items(folder: Path, pictures: PictureFolder) -> list[Item]:
    """Two rows of scores per example of examples.jsonl, one per image: of caption 0 and of caption 1."""
    path = folder / "examples.jsonl"
    items = []
    for number, row in read_lines(path, COLUMNS, ORIGIN):
        names = texts_of(row, IMAGE_COLUMNS, f"{path}, line {number}")
        files = [name if Path(name).suffix else f"{name}.png" for name in names]
        items += _example(row, f"{path}, line {number}", [pictures(file) for file in files])
    pictures.check(picture.name for item in items for picture in item.pictures)
    return items


def hub_items(rows: Sequence[Mapping[str, Any]]) -> list[Item]:
    """The same from the rows of the Hub's dataset, whose image columns hold images."""
    sides = [list(hub_rows(rows, column)) for column in IMAGE_COLUMNS]
    nowhere = PictureFolder(None, IMAGES)
    return [
        item
        for both in zip(*sides, strict=True)
        for item in _example(both[0].values, both[0].where, [row.picture(nowhere) for row in both])
    ]


def _example(row: Mapping[str, Any], where: str, pictures: Sequence[Picture]) -> list[Item]:
    captions, pair = texts_of(row, CAPTIONS, where), f"winoground/{row['id']}"
    kind = str(row.get("collapsed_tag") or "all").lower()
    return [
        caption_item(f"{pair}/image_{side}", "pairs", kind, pair, picture, captions, side, pair=pair)
        for side, picture in enumerate(pictures)
    ]


def winoground_score(
    items: Sequence[Item], answers: Mapping[str, Answer], parser: str, *, name: str = "winoground"
) -> Measures:
    """`text`: each image's own caption scores higher; `image`: each caption's own image; `group`: both.

    All comparisons are strict, so a constant score gets nothing; `tied` counts the examples with a tie. Also by the
    authors' collapsed tag (object, relation, both), where the file has it. Scores are compared across images: give
    log-likelihoods or similarities, not probabilities that were normalised within an image.
    """
    scores, found = rows_of_scores(items, answers), {}
    if not scores:
        return found
    examples = _examples(items)
    right = {pair: _judge([scores[item.id] for item in two], pair) for pair, two in examples.items()}
    kinds = {pair: two[0].kind for pair, two in examples.items()}
    found |= _shares(name, right)
    for kind in dict.fromkeys(kinds.values()) if len(set(kinds.values())) > 1 else ():
        found |= _shares(f"{name}/{kind}", {pair: value for pair, value in right.items() if kinds[pair] == kind})
    return found


def tied_examples(items: Sequence[Item], answers: Mapping[str, Answer], *, name: str = "winoground") -> Measures:
    """`<name>/pairs/tied`: the examples of which one of the four comparisons, by image or caption, is level."""
    level = {}
    for pair, members in _examples(items).items():
        rows = [answers[item.id].scores for item in members]
        level[pair] = float(any(len(set(line)) < len(line) for line in (*rows, *zip(*rows, strict=True))))
    return {f"{name}/pairs/tied": Measure(mean_metric(list(level.values())), tuple(level))}


def score_chance(items: Sequence[Item], *, name: str = "winoground") -> dict[str, float]:
    """The metrics where four scores are in random order."""
    kinds = dict.fromkeys(item.kind for item in items)
    heads = [name, *(f"{name}/{kind}" for kind in kinds if len(kinds) > 1)]
    return {f"{head}/{key}": value for head in heads for key, value in CHANCE.items()}


def _examples(items: Sequence[Item]) -> dict[str, list[Item]]:
    """The two questions about each example, by its name."""
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(item.cluster, []).append(item)
    return found


def _judge(scores: Sequence[Sequence[float]], name: str) -> tuple[bool, bool, bool]:
    """Text, image and group of one example; `scores[i][c]` is that of caption c for image i."""
    if len(scores) != 2:
        raise ValueError(f"{name} has {len(scores)} answered images instead of two")
    first, second = scores
    text = first[0] > first[1] and second[1] > second[0]
    image = first[0] > second[0] and second[1] > first[1]
    return text, image, text and image


def _shares(head: str, right: Mapping[str, tuple[bool, bool, bool]]) -> Measures:
    columns = zip(*right.values(), strict=True)
    return {
        f"{head}/{name}": Measure(mean_metric([float(value) for value in column]), tuple(right))
        for name, column in zip(("text", "image", "group"), columns, strict=True)
    }


WINOGROUND = Benchmark(
    name="winoground",
    title="Winoground (Thrush et al., 2022): two images and two captions of the same words",
    origin=ORIGIN,
    image_origin=IMAGES,
    files=("examples.jsonl",),
    read=winoground_items,
    score=winoground_score,
    readings={"official": read_as_is},
    primary="winoground/group",
    hub=(Hub("facebook/winoground", hub_items),),
    ties=tied_examples,
    chance=score_chance,
)
