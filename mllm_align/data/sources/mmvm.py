"""MMVM-SFT, the training rows of CoLVA (Zhou et al., 2025), https://arxiv.org/abs/2501.04670

{"file_names": ["./a/1.jpg", "./a/2.jpg"], "pos_annotations": [[{"size": [...], "counts": "..."}], [...]],
 "neg_annotations": [[], [...]], "is_disappear": false, "description": "...", "vprompt_type": "mask"}

`pos_annotations` has, per image, the thing that is asked for, `neg_annotations` others on the last image. Its authors
draw outlines and numbers on the images when they train; here the question names boxes in words, and masks stay as
`objects`: the same thing has the same id on both. `description`, why it is the same one, is not taken over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm_align.data.annotations import run_lengths, shrunk
from mllm_align.data.errors import DataError, quoted
from mllm_align.data.matching import matching_row
from mllm_align.data.objects import run_length_mask


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """A canonical row of the first and the last image, with a question in words and its answer."""
    names = [str(name) for name in row["file_names"]]
    where = f"row with images {quoted(names)}"
    positives, negatives = row["pos_annotations"], row["neg_annotations"]
    if len(names) < 2 or len(positives) != len(names):
        raise DataError(
            f"{where}: {len(positives)} lists of pos_annotations for {len(names)} images, two at the least"
        )
    if not positives[0]:
        raise DataError(f"{where}: nothing is asked for: its first pos_annotations are empty")
    right = [] if row.get("is_disappear") else positives[-1][:1]
    others = negatives[-1] if negatives else []
    objects = [_object(positives[0][0], 0, "asked", where)]
    objects += [_object(each, 1, "asked", where) for each in right]
    objects += [_object(each, 1, f"other {number}", where) for number, each in enumerate(others)]
    name = str(row["id"]) if row.get("id") is not None else " ".join(names)
    images = [names[0].removeprefix("./"), names[-1].removeprefix("./")]
    return matching_row(name, images, objects, 0, list(range(1, len(objects))), 1 if right else None)


def _object(mask: Mapping[str, Any], image: int, name: str, where: str) -> dict[str, Any]:
    return {"mask": run_lengths(shrunk(run_length_mask(mask, where))), "image": image, "object_id": name}
