"""GRIT (Peng et al., 2023), https://arxiv.org/abs/2306.14824: a caption, and boxes of the noun phrases in it.

{"key": "0000012345", "caption": "A dog on a red sofa", "noun_chunks": [[0, 5, 0.1, 0.2, 0.6, 0.9, 0.87], ...],
 "ref_exps": [[0, 19, 0.1, 0.2, 0.6, 0.9, 0.87], ...], "width": 512, "height": 384, "url": "..."}

A phrase is first and last letter of it, then left, top, right and bottom as shares, then the detector's score. Images
are named by a column `image`, or else lie where img2dataset puts them: "00000/0000012345.jpg" below `image_folder`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mllm_align.data.errors import DataError, quoted

SHARD = 5


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """A canonical row with `objects`, and the caption as the response."""
    where = f"row {quoted(row.get('key'))}"
    caption = row["caption"]
    phrases = [*row["noun_chunks"], *(row.get("ref_exps") or ())]
    objects: dict[tuple[Any, ...], dict[str, Any]] = {}
    for phrase in phrases:
        made = _object(caption, phrase, where)
        # What is said at more length of the same box is another name of it, not another thing.
        objects.setdefault((made["text"].casefold(), *made["box"]), made)
    return {
        "id": str(row["key"]) if row.get("key") is not None else None,
        "image": _image(row, where),
        "prompt": "Describe the picture.",
        "chosen": caption,
        "objects": list(objects.values()),
    }


def _object(caption: str, phrase: Sequence[float], where: str) -> dict[str, Any]:
    if len(phrase) != 7:
        raise DataError(
            f"{where}: a phrase is two places in the caption, four sides and a score, got {quoted(phrase)}"
        )
    start, end = int(phrase[0]), int(phrase[1])
    text = caption[start:end].strip()
    if not 0 <= start < end <= len(caption) or not text:
        raise DataError(f"{where}: letters {start} to {end} are no phrase of a caption of {len(caption)} letters")
    box = [float(side) for side in phrase[2:6]]
    return {"box": box, "text": text, "object_id": " ".join(f"{side:.4f}" for side in box)}


def _image(row: Mapping[str, Any], where: str) -> Any:
    if row.get("image") is not None:
        return row["image"]
    if row.get("key") is None:
        raise DataError(
            f"{where}: neither 'image' nor 'key' names its image; addresses are not fetched while training"
        )
    key = str(row["key"])
    return f"{key[:SHARD]}/{key}.jpg"
