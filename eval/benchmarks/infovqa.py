"""InfographicVQA (Mathew et al. 2022, https://arxiv.org/abs/2104.12756): questions about infographics.

Validation split, scored by ANLS as DocVQA is (see `docvqa` for what "official" and the harnesses do), also by where
the answer comes from, what it rests on, and what has to be done with it. The infographic is the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_align_eval.benchmark import Benchmark, Hub
from mllm_align_eval.benchmarks.docvqa import READINGS, anls_score, question_rows, text_items
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.tables import hub_rows
from mllm_align_eval.items import Item, Picture

ORIGIN = "https://rrc.cvc.uab.es/?ch=17&com=downloads (task 3, infographicsVQA_val_v1.0_withQT.json)"
IMAGES = "https://rrc.cvc.uab.es/?ch=17&com=downloads (task 3, images)"
FILES = ("infographicsVQA_val_v1.0_withQT.json", "infographicsVQA_val_v1.0.json")
GROUPS = ("answer_type", "evidence", "operation/reasoning")


def infovqa_items(folder: Path, pictures: PictureFolder) -> list[Item]:
    """The questions of `infographicsVQA_val_v1.0_withQT.json` (or the file without types)."""
    rows = question_rows(folder, FILES, ORIGIN, "image_local_name")
    items = text_items("infovqa", ((row, pictures(row.name)) for row in rows), GROUPS)
    pictures.check(picture.name for item in items for picture in item.pictures)
    return items


def infovqa_hub_items(rows: Sequence[Mapping[str, Any]]) -> list[Item]:
    """The questions of the Hub's copy; an infographic is known by its address."""
    nowhere = PictureFolder(None, IMAGES)
    shown = ((row, Picture(str(row.values["image_url"]), row.picture(nowhere).load)) for row in hub_rows(rows))
    return text_items("infovqa", shown, GROUPS)


INFOVQA = Benchmark(
    name="infovqa",
    title="InfographicVQA (Mathew et al., 2022), validation: reading infographics",
    origin=ORIGIN,
    image_origin=IMAGES,
    files=FILES,
    read=infovqa_items,
    score=anls_score,
    readings=READINGS,
    primary="infovqa/anls",
    max_new_tokens=32,
    hub=(Hub("lmms-lab/DocVQA", infovqa_hub_items, split="validation", name="InfographicVQA"),),
)
