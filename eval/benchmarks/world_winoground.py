"""Winoground on the rendered world: two pictures, two captions of the same words, four scores.

As Thrush et al. (2022, https://arxiv.org/abs/2204.03162) build it, with scenes in place of photos: in the second
picture shapes, or one attribute, of two objects are exchanged, and so they are in the second caption. All else is the
same, so that neither picture nor caption is the likelier one by itself. Scored as `winoground` is: chance is a quarter
for text and for image and a sixth for both; ties are wrong. 128 pairs of a kind; the pair is the cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from mllm_align.data.world.captions import IMAGE_INSTRUCTION
from mllm_align.data.world.render import render
from mllm_align.data.world.swapped import SWAP_KINDS, iter_swapped
from mllm_align_eval.benchmark import Benchmark
from mllm_align_eval.benchmarks.captions import caption_item
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.winoground import score_chance, tied_examples, winoground_score
from mllm_align_eval.items import Item, Picture

NAME = "world_winoground"


def world_pair_items(num_pairs: int = 128, *, seed: int = 0, kinds: Sequence[str] = SWAP_KINDS) -> list[Item]:
    """Two rows of scores for each of `num_pairs` pairs of a kind, one per picture."""
    items = []
    for number, found in enumerate(islice(iter_swapped(kinds, seed), num_pairs * len(kinds))):
        pair = f"{NAME}/{found.kind}/{seed}/{number // len(kinds)}"
        captions = [said.text() for said in found.statements]
        for side, scene in enumerate(found.scenes):
            name = f"{pair}/image_{side}"
            picture = Picture(name, partial(render, scene))
            asked = caption_item(name, "pairs", found.kind, pair, picture, captions, side, pair=pair)
            items.append(replace(asked, prompt=IMAGE_INSTRUCTION))
    return items


def _read(folder: Path, pictures: PictureFolder) -> list[Item]:
    return world_pair_items()


WORLD_WINOGROUND = Benchmark(
    name=NAME,
    title="Rendered world, Winoground: two pictures and two captions of the same words",
    origin="",
    image_origin="",
    read=_read,
    score=partial(winoground_score, name=NAME),
    primary=f"{NAME}/group",
    ties=partial(tied_examples, name=NAME),
    chance=partial(score_chance, name=NAME),
)
