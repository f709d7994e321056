"""What the images of a listing look like (`looks`), and which are in another folder, or come twice, by that."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mllm_align.data.blocks import PROBLEM, BlockJob
from mllm_align.data.errors import DataError
from mllm_align.data.files import as_text
from mllm_align.data.images import load_image
from mllm_align.data.mine.listing import Listing, list_images
from mllm_align.data.mine.looks import alike, look_of

CHUNK = 2**16  # looks that are compared with those of benchmarks together
_SCHEMA = pa.schema([("row", pa.int64()), ("look", pa.binary())])


def looks_of(
    listing: Listing,
    rows: np.ndarray,
    folder: str | os.PathLike[str],
    *,
    block_size: int = 1024,
    progress: bool = True,
    made_of: str = "",
) -> dict[int, bytes]:
    """Row -> look of the images of some rows, resumable; an image that cannot be read has none. A collective.

    Args:
        listing: Of the images.
        rows: (N,) which.
        folder: Where the job keeps what it has finished.
        block_size: Images of a block.
        progress: Whether to show a bar.
        made_of: What the images are called, for messages.
    """
    settings = {"job": "looks", "images": listing.digest, "chosen": [len(rows), int(rows.sum())]}
    job = BlockJob(folder, settings, len(rows), _SCHEMA, block_size, made_of=made_of)

    def work(numbers: range) -> list[dict[str, Any]]:
        return [_record(listing, int(rows[number])) for number in numbers]

    job.run(work, "looking at images", progress=progress)
    return {record["row"]: record["look"] for record in job.records() if record[PROBLEM] is None}


def _record(listing: Listing, row: int) -> dict[str, Any]:
    try:
        return {"row": row, "look": look_of(load_image(listing.image(row), f"row {row}"))}
    except DataError as error:
        return {"row": row, PROBLEM: as_text(str(error))}


def looks_of_folders(folders: Iterable[str | os.PathLike[str]]) -> list[bytes]:
    """The looks of all images of some folders, each once.

    Raises:
        DataError: If there is no such folder, it holds no images, or one cannot be read: what it shows is not known.
    """
    listings = [list_images(folder) for folder in folders]
    read = (load_image(listing.image(row), key) for listing in listings for row, key in enumerate(listing.keys))
    return sorted({look_of(image) for image in read})


def shown_in(looks: Mapping[int, bytes], others: Sequence[bytes]) -> np.ndarray:
    """Rows, rising, whose image is the same to the eye as one of the others, or its mirror image."""
    rows_of = _rows_of(looks)
    known = set(others)
    found = {row for look in known & rows_of.keys() for row in rows_of[look]}
    own = [look for look in rows_of if look not in known]
    for start in range(0, len(own), CHUNK):
        together = [*others, *own[start : start + CHUNK]]
        for first, second in alike(together):
            if first < len(others) <= second:
                found.update(rows_of[together[second]])
    return np.array(sorted(found), np.int64)


def later_copies(looks: Mapping[int, bytes]) -> np.ndarray:
    """Rows, rising, whose image is the same to the eye as that of an earlier row, or its mirror image."""
    rows_of = _rows_of(looks)
    found = {row for rows in rows_of.values() for row in rows[1:]}
    own = list(rows_of)  # by the first row of each
    for _, second in alike(own):  # the second is the later one
        found.update(rows_of[own[second]])
    return np.array(sorted(found), np.int64)


def _rows_of(looks: Mapping[int, bytes]) -> dict[bytes, list[int]]:
    rows_of: dict[bytes, list[int]] = {}
    for row in sorted(looks):
        rows_of.setdefault(looks[row], []).append(row)
    return rows_of
