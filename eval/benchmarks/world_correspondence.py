"""Correspondence in the rendered world: which numbered thing of the second picture is the one marked in the first.

In the manner of MMVM, on pictures that are drawn here. Of every two pictures two look-alikes are asked for, which
makes a pair: an answer from the second picture alone gets one of the two right at the most.

Splits: `easy`, `medium` and `hard`, in the words of the shipped base and at its size, and `large`, as hard, at 448
pixels and in plain English.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from mllm_align.data.world import SMALL, World
from mllm_align.data.world.correspondence import Matching, draw, iter_matchings
from mllm_align_eval.benchmark import Benchmark
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.mmvm import over_chance
from mllm_align_eval.items import Answer, Item, Picture
from mllm_align_eval.metrics import Measure, Measures, clusters_of, mean
from mllm_align_eval.statistics import Metric

NAME = "world_correspondence"
# Difficulty, world and wording of each split; None for the wording that is asked for.
LEVELS = {
    "easy": ("easy", SMALL, None),
    "medium": ("medium", SMALL, None),
    "hard": ("hard", SMALL, None),
    "large": ("hard", World(image_size=448), "full"),
}


def correspondence_items(
    num_matchings: int = 300,
    *,
    seed: int = 0,
    split: str = "test",
    levels: Sequence[str] = tuple(LEVELS),
    paraphrases: str = "seen",
) -> list[Item]:
    """Two questions about each of `num_matchings` pairs of pictures, per level; these are the item's splits."""
    found = []
    for level in levels:
        difficulty, world, wording = LEVELS[level]
        stream = iter_matchings(split, seed, difficulty, wording or paraphrases, world)
        for _ in range(num_matchings):
            matching = next(stream)
            found += [_item(matching, level, place) for place in range(2)]
    return found


def _item(matching: Matching, level: str, place: int) -> Item:
    name = f"{NAME}/{level}/{matching.id}"
    first, second = matching.frames
    return Item(
        id=f"{name}/{place}",
        benchmark=NAME,
        split=level,
        kind=matching.differs_in,
        cluster=name,
        prompt=matching.text,
        pictures=(
            Picture(f"{name}/marked/{place}", partial(draw, first, matching.asked[place])),
            Picture(f"{name}/numbered", partial(draw, second, numbers=matching.numbers)),
        ),
        choices=matching.choices,
        answer=matching.answers[place],
        pair=name,
    )


def correspondence_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """`world_correspondence/acc`, and `.../chance_corrected_acc` as MMVM's: 0 for a guess, 1 for all right."""
    counts = np.array([[answers[item.id].right, 1 / len(item.choices), 1] for item in items], dtype=np.float64)
    return {
        f"{NAME}/acc": mean(items, lambda item: answers[item.id].right),
        f"{NAME}/chance_corrected_acc": Measure(Metric(counts.reshape(-1, 3), over_chance), clusters_of(items)),
    }


def _read(folder: Path, pictures: PictureFolder) -> list[Item]:
    return correspondence_items()


WORLD_CORRESPONDENCE = Benchmark(
    name=NAME,
    title="Rendered world, correspondence: the same object in two pictures, among look-alikes",
    origin="",
    image_origin="",
    read=_read,
    score=correspondence_score,
    primary=f"{NAME}/acc",
    max_new_tokens=4,
)
