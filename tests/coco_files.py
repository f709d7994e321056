"""A few made-up images in the schema of COCO 2014's annotation files."""

from __future__ import annotations

import json
from pathlib import Path

CATEGORIES = {
    1: "person",
    3: "car",
    16: "bird",
    18: "dog",
    46: "wine glass",
    62: "chair",
    70: "toilet",
    77: "cell phone",
}
INSTANCES = {101: [1, 1, 18], 102: [3], 103: [70], 104: [], 105: [16, 46]}
CAPTIONS = {
    101: ["A man and his dog.", "Two people walk a puppy near parked cars."],
    102: ["A red taxi on a street."],
    103: ["The seat of a toilet.", "A bathroom."],
    104: ["Nothing much."],
    105: ["A baby bird beside wine glasses.", "Birds on a table."],
    201: ["Two horses."],
}


def write_coco(folder: Path, train: bool = False) -> Path:
    """Writes instances and captions of val2014, and of train2014 with image 201."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, "val", {key: INSTANCES.get(key, []) for key in CAPTIONS if key < 200})
    if train:
        _write(folder, "train", {201: [18]})
    return folder


def _write(folder: Path, split: str, instances: dict[int, list[int]]) -> None:
    images = [
        {"id": image, "file_name": f"COCO_{split}2014_{image:012}.jpg", "height": 4, "width": 6} for image in instances
    ]
    boxes = [
        {"id": 10 * image + n, "image_id": image, "category_id": category, "bbox": [0, 0, 2, 2], "iscrowd": 0}
        for image, categories in instances.items()
        for n, category in enumerate(categories)
    ]
    texts = [
        {"id": 10 * image + n, "image_id": image, "caption": text}
        for image in instances
        for n, text in enumerate(CAPTIONS[image])
    ]
    categories = [{"id": key, "name": name, "supercategory": "thing"} for key, name in CATEGORIES.items()]
    content = {"info": {}, "licenses": [], "images": images}
    whole = {**content, "annotations": boxes, "categories": categories}
    (folder / f"instances_{split}2014.json").write_text(json.dumps(whole))
    (folder / f"captions_{split}2014.json").write_text(json.dumps({**content, "annotations": texts}))
