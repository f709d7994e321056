"""What COCO 2014's annotation files say of some images: name, classes of the instances, captions."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllm_align_eval.benchmarks.files import read_json

ORIGIN = "http://images.cocodataset.org/annotations/annotations_trainval2014.zip"
IMAGES = "COCO val2014, http://images.cocodataset.org/zips/val2014.zip"

_File = tuple[Path, Any]


@dataclass
class CocoImage:
    """One image: the file's name, the class of every instance (repeated), and the captions."""

    id: int
    file_name: str
    categories: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)


def coco_images(
    folders: Sequence[Path], ids: Sequence[int] | None = None, num_images: int = 500, seed: int = 0
) -> list[CocoImage]:
    """Images with their annotations from `instances_{val,train}2014.json` and `captions_{val,train}2014.json`.

    Args:
        folders: Where the files are looked for, in this order.
        ids: Images, in order; val2014 is read for them, and train2014 where some are not in it. None draws from
            val2014.
        num_images: How many to draw; all where there are no more.
        seed: Of the draw, which is `random.Random(seed).shuffle` of the ascending ids.

    Raises:
        FileNotFoundError: If a file is missing; with its origin.
        ValueError: If a file is none of COCO's, or an image is in none.
    """
    found: dict[int, CocoImage] = {}
    for split in ("val", "train"):
        captions = _file(folders, f"captions_{split}2014.json")
        names = {row["id"]: row["file_name"] for row in _rows(*captions, "images", ("id", "file_name"))}
        if ids is None:
            ids = sorted(names)
            random.Random(seed).shuffle(ids)
            ids = ids[:num_images]
        if not ids:
            raise ValueError(f"no image is asked about: {captions[0]} or the list of ids is empty")
        new = {id: CocoImage(id, names[id]) for id in ids if id in names and id not in found}
        if new:
            _annotate(new, captions, _file(folders, f"instances_{split}2014.json"))
        found |= new
        missing = [id for id in ids if id not in found]
        if not missing:
            return [found[id] for id in ids]
    raise ValueError(f"{len(missing)} of {len(ids)} images are not in COCO 2014 (first: {missing[0]})")


def _annotate(images: dict[int, CocoImage], captions: _File, instances: _File) -> None:
    """Adds captions and classes; what is about other images is passed over."""
    for row in _rows(*captions, "annotations", ("image_id", "caption")):
        if row["image_id"] in images:
            images[row["image_id"]].captions.append(row["caption"])
    names = {row["id"]: row["name"] for row in _rows(*instances, "categories", ("id", "name"))}
    for row in _rows(*instances, "annotations", ("image_id", "category_id")):
        if row["image_id"] in images:
            if row["category_id"] not in names:
                raise ValueError(f"{instances[0]}: no category has the id {row['category_id']}")
            images[row["image_id"]].categories.append(names[row["category_id"]])


def _file(folders: Sequence[Path], name: str) -> _File:
    path = next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)
    return path, read_json(path, ORIGIN)


def _rows(path: Path, content: Any, part: str, columns: Iterable[str]) -> list[dict[str, Any]]:
    rows = content.get(part) if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise ValueError(f"{path} is no annotation file of COCO: it has no list {part!r}; get it from {ORIGIN}")
    wanted = set(columns)
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not wanted <= row.keys():
            raise ValueError(f"{path}: entry {number} of {part} has not {', '.join(sorted(wanted))}")
    return rows
