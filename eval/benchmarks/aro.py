"""ARO (Yuksekgonul et al. 2023, https://arxiv.org/abs/2210.01936): relations, attributes and the order of words.

VG-Relation and VG-Attribution: a part of a Visual Genome image, a true caption and one with things swapped. COCO-Order
and Flickr30k-Order: a caption and four shuffles of its words; a language model alone does well there.

Scores are in the published order: in the VG sets the true caption comes **second**, in the order sets **first**. The
script takes the first of equal scores, so a constant score gets 0 % of the former and 100 % of the latter: that is
parser "official". Strictly a tie is wrong, whichever comes first, and `aro/<set>/tied` says how many there are.

Chance is a half in the VG sets and a fifth in the order sets. The image is the cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mllm_align_eval.benchmark import OFFICIAL, Benchmark
from mllm_align_eval.benchmarks.captions import (
    beats_all,
    caption_item,
    read_as_is,
    rows_of_scores,
    texts_of,
    tied_rows,
)
from mllm_align_eval.benchmarks.files import PictureFolder, read_json
from mllm_align_eval.items import Answer, Item, Picture
from mllm_align_eval.metrics import Measures, by_kind, by_split, mean, mean_over_groups

ORIGIN = "https://github.com/mertyg/vision-language-models-are-bows (links to its files in dataset_zoo)"
IMAGES = "the same page: vgr_vga_images.zip for Visual Genome, the images of COCO and Flickr30k"
BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
VG = {"vg_relation": "visual_genome_relation.json", "vg_attribution": "visual_genome_attribution.json"}
ORDER = {"coco_order": "coco_order.json", "flickr30k_order": "flickr30k_order.json"}
# The script leaves rarer pairs of attributes out of its mean.
LEAST_ATTRIBUTES = 25
RIGHT = {"vg_relation": 1, "vg_attribution": 1, "coco_order": 0, "flickr30k_order": 0}


def aro_items(folder: Path, pictures: PictureFolder) -> list[Item]:
    """The rows of the files that there are; at least one must be there.

    `visual_genome_relation.json` and `visual_genome_attribution.json` are the published ones. The order sets are not
    published: the script shuffles anew each time. What is read are its `test_cases`, written as JSON to
    `coco_order.json` and `flickr30k_order.json`: rows of {image, caption_options}.
    """
    files = VG | ORDER
    there = [split for split, name in files.items() if (folder / name).is_file()] or list(files)[:1]
    items = [item for split in there for item in _split(folder / files[split], split, pictures)]
    pictures.check(picture.name for item in items for picture in item.pictures)
    return items


def _split(path: Path, split: str, pictures: PictureFolder) -> Iterator[Item]:
    rows = read_json(path, ORIGIN)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} is not a list of rows")
    for number, row in enumerate(rows):
        where, name = f"{path}, row {number}", f"aro/{split}/{number}"
        if split in ORDER:
            (image,) = texts_of(row, ("image",), where)
            captions = row.get("caption_options")
            if not isinstance(captions, list) or len(captions) < 2 or not all(isinstance(c, str) for c in captions):
                raise ValueError(f"{where}: caption_options is not a list of captions")
            yield caption_item(name, split, split, image, pictures(image), captions, 0)
            continue
        image, false, true = texts_of(row, ("image_path", "false_caption", "true_caption"), where)
        if not all(isinstance(row.get(side), int | float) for side in BOX):
            raise ValueError(f"{where}: no numbers {', '.join(BOX)}")
        box = [row[side] for side in BOX]
        picture, kind = _part(pictures(image), box), _kind(row, split, where)
        yield caption_item(name, split, kind, image, picture, (false, true), 1, truth={"crop": box})


def _kind(row: Mapping[str, Any], split: str, where: str) -> str:
    """The relation, or both attributes joined, by which the script groups."""
    if split == "vg_relation":
        return texts_of(row, ("relation_name",), where)[0]
    both = row.get("attributes")
    if not isinstance(both, list) or len(both) != 2:
        raise ValueError(f"{where}: attributes are not two")
    return f"{both[0]}_{both[1]}"


def _part(picture: Picture, box: Sequence[float]) -> Picture:
    return Picture(picture.name, partial(_crop, picture, tuple(box)))


def _crop(picture: Picture, box: Sequence[float]) -> Image.Image:
    left, top, width, height = box
    return picture.load().crop((int(left), int(top), int(left + width), int(top + height)))


def aro_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """By set how often the true caption scores highest (`acc`), of the VG sets also as a mean of groups (`macro_acc`).

    Groups are relations, and pairs of attributes with at least 25 rows, as in the authors' script. Their published
    VG-Relation number leaves out 157 relations that a notebook of theirs lists (symmetric ones, rare ones); it is the
    mean of `aro/vg_relation/<relation>_acc` over the others.
    """
    scores = rows_of_scores(items, answers)
    found: Measures = {}
    for split, members in by_split(items).items() if scores else ():
        right = RIGHT[split]
        credit = {item.id: _credit(scores[item.id], right, parser) for item in members}
        found[f"aro/{split}/acc"] = mean(members, lambda item, credit=credit: credit[item.id])
        if split in VG:
            found |= _grouped(split, members, credit)
    return found


def _credit(scores: Sequence[float], right: int, parser: str) -> float:
    return float(np.argmax(scores) == right) if parser == OFFICIAL else float(beats_all(scores, right))


def _grouped(split: str, items: Sequence[Item], credit: Mapping[str, float]) -> Measures:
    """The mean over groups, and each group where they are relations."""
    least = LEAST_ATTRIBUTES if split == "vg_attribution" else 1
    groups = {kind: members for kind, members in by_kind(items).items() if len(members) >= least}
    if not groups:
        return {}
    kept = [item for item in items if item.kind in groups]
    found = {f"aro/{split}/macro_acc": mean_over_groups(kept, lambda item: credit[item.id])}
    if split == "vg_relation":
        for kind, members in groups.items():
            name = kind.replace(" ", "_")
            found[f"aro/{split}/{name}_acc"] = mean(members, lambda item: credit[item.id])
    return found


ARO = Benchmark(
    name="aro",
    title="ARO (Yuksekgonul et al., 2023): relations, attributes and word order",
    origin=ORIGIN,
    image_origin=IMAGES,
    files=(*VG.values(), *ORDER.values()),
    read=aro_items,
    score=aro_score,
    readings={"official": read_as_is},
    ties=tied_rows,
)
