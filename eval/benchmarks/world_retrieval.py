"""Short captions of the rendered world for encoders: retrieval in a pool, and captions that are nearly right.

`world_retrieval` has 256 pictures with a caption of two objects each, true of that picture alone: chance at K is
K / 256 both ways, strictly ranked as in `retrieval`. `world_negatives` is built as SugarCrepe (Hsieh et al. 2023,
https://arxiv.org/abs/2306.14610) and SugarCrepe++ (Dumpala et al. 2024, https://arxiv.org/abs/2406.11171) are: a
caption, the same in other words, and a false one in which two objects or attributes are swapped, one is replaced, or
one is added. Chance is a half for the caption alone (`acc`) and a third where its paraphrase must win too (`itt_acc`).

All scenes are balanced, so that no prior helps; where something is added the false caption is the longer one. The
picture is the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mllm_align.data.world.captions import hard_negative_items, retrieval_pool
from mllm_align.data.world.statements import NEGATIVE_KINDS
from mllm_align_eval.benchmark import Benchmark
from mllm_align_eval.benchmarks.captions import beats_all, caption_item, rows_of_scores, tied_rows
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.retrieval import queries, retrieval_score, tied_queries
from mllm_align_eval.benchmarks.sugarcrepe import in_both, side, with_mean, with_ways
from mllm_align_eval.items import Answer, Item, Picture
from mllm_align_eval.metrics import Measures, by_split, mean

RETRIEVAL, NEGATIVES = "world_retrieval", "world_negatives"
WORDINGS = ("caption", "paraphrase")


def pool_items(num_images: int = 256, *, seed: int = 0, num_objects: int = 2) -> list[Item]:
    """A query per picture and per caption of a pool; captions name `num_objects` objects."""
    rows = retrieval_pool(num_images, seed, num_objects=num_objects)
    names, captions = [row["id"] for row in rows], [[row["caption"]] for row in rows]
    return queries(RETRIEVAL, names, [picture_of(row) for row in rows], captions)


def negative_items(num_items: int = 128, *, seed: int = 0, kinds: Sequence[str] = NEGATIVE_KINDS) -> list[Item]:
    """Two rows of two scores for each of `num_items` pictures of a kind: a true wording, then the false one."""
    found = []
    for row in hard_negative_items(num_items, seed, kinds):
        (false,), (other,) = row["negatives"], row["positives"]
        for wording, true in zip(WORDINGS, (row["caption"], other), strict=True):
            name, kind = f"{NEGATIVES}/{row['id']}/{wording}", row["kind"]
            asked = caption_item(name, kind, wording, row["id"], picture_of(row), (true, false), 0)
            found.append(replace(asked, prompt=row["prompt"]))
    return found


def negatives_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """By kind and, as plain means over kinds, by way and over all: `acc` and `itt_acc`; ties are wrong."""
    scores, found = rows_of_scores(items, answers), {}
    for kind, members in by_split(items).items() if scores else ():
        right = {item.id: beats_all(scores[item.id], 0) for item in members}
        own = [item for item in members if side(item) == WORDINGS[0]]
        found[f"{NEGATIVES}/{kind}/acc"] = mean(own, lambda item, right=right: right[item.id])
        found[f"{NEGATIVES}/{kind}/itt_acc"] = in_both(members, right, WORDINGS)
    for measure in ("acc", "itt_acc"):
        ways = with_ways(NEGATIVES, measure, NEGATIVE_KINDS, found)
        found = with_mean(NEGATIVES, measure, NEGATIVE_KINDS, ways)
    return found


def picture_of(row: Mapping[str, Any]) -> Picture:
    """The rendered picture of a row."""
    return Picture(row["id"], lambda: row["image"])


def _read_pool(folder: Path, pictures: PictureFolder) -> list[Item]:
    return pool_items()


def _read_negatives(folder: Path, pictures: PictureFolder) -> list[Item]:
    return negative_items()


WORLD_RETRIEVAL = Benchmark(
    name=RETRIEVAL,
    title="Rendered world, retrieval: 256 pictures and their short captions, both ways",
    origin="",
    image_origin="",
    read=_read_pool,
    score=retrieval_score,
    primary=f"{RETRIEVAL}/r_mean",
    ties=tied_queries,
)
WORLD_NEGATIVES = Benchmark(
    name=NEGATIVES,
    title="Rendered world, hard negatives: short captions with something swapped, replaced or added",
    origin="",
    image_origin="",
    read=_read_negatives,
    score=negatives_score,
    primary=f"{NEGATIVES}/acc_mean{len(NEGATIVE_KINDS)}_pmi",
    ties=tied_rows,
)
