"""SugarCrepe++ on the rendered world: a caption, the same in other words and another order, and a false one.

As Dumpala et al. (2024, https://arxiv.org/abs/2406.11171) build it: the false caption differs from the first true one
in one replacement or exchange, the second true one has other words in another order, so that in words the false one is
the nearest. Its kinds are the five of `sugarcrepe_pp`; nothing is added, so length tells nothing of the false one. The
scene tells what is true. Of every other picture the first true caption and the false one have the other grammar: an
encoder that likes one form better, whatever is said in it, would otherwise get everything or nothing.

Scored as `sugarcrepe_pp` is: `itt_acc`, both true captions above the false one for the image; `tot_acc`, the true ones
nearer to one another than either to the false one, from texts alone. Chance is a third for either; ties are wrong.
128 balanced test scenes of a kind; the picture is the cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mllm_align.data.world import hard_negative_items
from mllm_align_eval.benchmark import Benchmark
from mllm_align_eval.benchmarks.captions import tied_rows
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.sugarcrepe_pp import plus_chance, plus_score, triplet_items
from mllm_align_eval.benchmarks.world_retrieval import picture_of
from mllm_align_eval.items import Item

NAME = "world_sugarcrepe_pp"
KINDS = ("replace_attribute", "replace_object", "replace_relation", "swap_attribute", "swap_object")


def world_plus_items(num_items: int = 128, *, seed: int = 0, kinds: Sequence[str] = KINDS) -> list[Item]:
    """The four rows of `sugarcrepe_pp` for each of `num_items` pictures of a kind."""
    seen, read = [], []
    for row in hard_negative_items(num_items, seed, kinds, far=True):
        true, head = (row["caption"], *row["positives"]), f"{NAME}/{row['kind']}/{row['id'].rpartition('/')[2]}"
        shown, texts = triplet_items(head, row["kind"], row["id"], picture_of(row), true, *row["negatives"])
        seen += [replace(item, prompt=row["prompt"]) for item in shown]
        read += texts
    return seen + read


def _read(folder: Path, pictures: PictureFolder) -> list[Item]:
    return world_plus_items()


WORLD_SUGARCREPE_PP = Benchmark(
    name=NAME,
    title="Rendered world, SugarCrepe++: scores of a caption, the same in other words, and a false one",
    origin="",
    image_origin="",
    read=_read,
    score=partial(plus_score, name=NAME, subsets=KINDS),
    primary=f"{NAME}/itt_acc_mean{len(KINDS)}_pmi",
    ties=tied_rows,
    chance=partial(plus_chance, name=NAME, subsets=KINDS),
)
