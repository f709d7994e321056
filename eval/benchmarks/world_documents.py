"""Documents in the rendered world: forms, tables and invoices that are drawn here, scored by ANLS as DocVQA is.

Splits: `small`, in the words of the shipped base and at its size, and `large`, at 448 pixels and
asked as DocVQA is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from mllm_align.data.world.documents import PAPERS, draw, iter_documents
from mllm_align_eval.benchmark import Benchmark
from mllm_align_eval.benchmarks.docvqa import ANSWERS, GROUPS, SUFFIX, anls_score
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.items import Answer, Item, Picture
from mllm_align_eval.metrics import Measures, by_split

NAME = "world_documents"


def document_items(
    num_pairs: int = 300,
    *,
    seed: int = 0,
    split: str = "test",
    papers: Sequence[str] = tuple(PAPERS),
    paraphrases: str = "seen",
) -> list[Item]:
    """The question of each of `num_pairs` pairs of pages about both pages, per paper; these are the item's splits."""
    found = []
    for paper in papers:
        stream = iter_documents(split, seed, paper, paraphrases=paraphrases)
        for _ in range(num_pairs):
            pair = next(stream)
            for place in range(2):
                name = f"{NAME}/{pair.id}/{place}"
                found.append(
                    Item(
                        id=name,
                        benchmark=NAME,
                        split=paper,
                        kind="text",
                        cluster=f"{NAME}/{pair.id}",
                        prompt=pair.text if paper == "small" else pair.text + SUFFIX,
                        pictures=(Picture(name, partial(draw, pair.sheets[place], pair.looks[place])),),
                        truth={ANSWERS: (pair.answers[place],), GROUPS: (pair.kind,)},
                    )
                )
    return found


def documents_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """DocVQA's metrics over all pages, and as `world_documents/<paper>/anls` by paper."""
    found = anls_score(items, answers, parser)
    for paper, members in by_split(items).items():
        found[f"{NAME}/{paper}/anls"] = anls_score(members, answers, parser)[f"{NAME}/anls"]
    return found


def _read(folder: Path, pictures: PictureFolder) -> list[Item]:
    return document_items()


WORLD_DOCUMENTS = Benchmark(
    name=NAME,
    title="Rendered world, documents: words on forms, tables and invoices",
    origin="",
    image_origin="",
    read=_read,
    score=documents_score,
    primary=f"{NAME}/anls",
)
