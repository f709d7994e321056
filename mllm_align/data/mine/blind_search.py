"""The two long jobs of mining CLIP-blind pairs: images that come twice, and pairs that one encoder cannot tell apart.

Both are block jobs whose rows are units of a search (`alike_pairs`), so processes share them, a kill costs one file of
units, and what was found is on disk as soon as it was.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mllm_align.data.blocks import BlockJob
from mllm_align.data.mine.alike_pairs import Found, Search, exact_cosines
from mllm_align.data.mine.best_pairs import BestPairs, Pairs
from mllm_align.data.mine.tiles import Tiles

FILES = 1024  # of a job at the most, about
_COPIES = pa.schema([("row", pa.int64())])
_PAIRS = pa.schema(
    [
        ("unit", pa.int64()),
        ("first", pa.int64()),
        ("second", pa.int64()),
        ("visual", pa.float64()),
        ("semantic", pa.float64()),
        ("alike", pa.int64()),
        ("blind", pa.int64()),
    ]
)


class BlindPairs(NamedTuple):
    """What a search found.

    Attributes:
        pairs: The best of every image, by rows of the input, the largest gap first.
        alike: Pairs that the first encoder finds alike; with an index, those that it found, some from both sides.
        blind: Those of them that the second one finds unlike.
    """

    pairs: Pairs
    alike: int
    blind: int


def repeated_images(
    search: Search, rows: np.ndarray, folder: str | os.PathLike[str], settings: Mapping[str, Any], *, progress: bool
) -> np.ndarray:
    """Rows of images that look like an earlier one to the encoder of a search. A collective.

    Args:
        search: Of pairs so similar that they show the same.
        rows: (N,) of the images, in the order of the search's vectors.
        folder: Where the job keeps what it has finished.
        settings: All that decides the result, besides the search's identity.
        progress: Whether to show a bar.
    """
    job = _job(folder, {"job": "repeated images", **settings}, search, _COPIES)

    def work(units: range) -> list[dict[str, Any]]:
        later = [found.second for unit in units for found in search(unit)]
        numbers = np.unique(np.concatenate(later)) if later else np.empty(0, np.int64)
        return [{"row": row} for row in rows[numbers].tolist()]

    job.run(work, "finding repeated images", progress=progress)
    return np.unique(np.concatenate([np.empty(0, np.int64), *(table["row"].to_numpy() for table in job.tables())]))


def blind_pairs(
    search: Search,
    meaning: Tiles,
    below: float,
    per_image: int,
    kin: tuple[np.ndarray, ...],
    folder: str | os.PathLike[str],
    settings: Mapping[str, Any],
    *,
    progress: bool,
) -> BlindPairs:
    """Pairs that a search finds alike and a second encoder unlike. A collective.

    Args:
        search: Over the vectors of the first encoder.
        meaning: Those of the second, of the same images in the same order.
        below: Its cosines must be below, exclusive.
        per_image: Pairs of one image at the most.
        kin: Labels, (num_rows,) each: images with the same one (not -1) make no pair.
        folder: Where the job keeps what it has finished.
        settings: All that decides the result, besides the search's identity.
        progress: Whether to show a bar.
    """
    settings = {"job": "blind pairs", **settings, "below": below, "per_image": per_image}
    job = _job(folder, settings, search, _PAIRS)
    own = tuple(labels[meaning.rows] for labels in kin)
    job.run(_Work(search, meaning, below, per_image, own), "comparing images", progress=progress)
    best, alike, blind = BestPairs(per_image), 0, 0
    for table in job.tables():
        columns = {name: table[name].to_numpy() for name in ("alike", "blind")}
        alike, blind = alike + int(np.nansum(columns["alike"])), blind + int(np.nansum(columns["blind"]))
        pairs = table.filter(table["first"].is_valid())
        best.add(Pairs(*(pairs[name].to_numpy() for name in ("first", "second", "visual", "semantic"))))
    return BlindPairs(best.best(), alike, blind)


def _job(folder: str | os.PathLike[str], settings: dict[str, Any], search: Search, schema: pa.Schema) -> BlockJob:
    size = -(-len(search) // FILES) or 1
    return BlockJob(folder, {**settings, "search": search.identity}, len(search), schema, size, inputs=("images",))


class _Work(NamedTuple):
    """From units to records: how many pairs each has, and its best."""

    search: Search
    meaning: Tiles
    below: float
    per_image: int
    kin: tuple[np.ndarray, ...]

    def __call__(self, units: range) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []
        for unit in units:
            best, alike, blind = BestPairs(self.per_image), 0, 0
            for found in self.search(unit):
                found = self._strangers(found)
                semantic = cosines(self.meaning, found.first, found.second)
                unlike = semantic < self.below
                alike, blind = alike + len(semantic), blind + int(unlike.sum())
                best.add(Pairs(*found, semantic).where(unlike))
            pairs = best.candidates()
            rows = self.meaning.rows
            columns = rows[pairs.first], rows[pairs.second], pairs.visual, pairs.semantic
            records.append({"unit": unit, "alike": alike, "blind": blind})
            records += [
                {"unit": unit, "first": first, "second": second, "visual": visual, "semantic": semantic}
                for first, second, visual, semantic in zip(*(column.tolist() for column in columns), strict=True)
            ]
        return records

    def _strangers(self, found: Found) -> Found:
        apart = np.ones(len(found.first), bool)
        for labels in self.kin:
            apart &= (labels[found.first] < 0) | (labels[found.first] != labels[found.second])
        return Found(*(column[apart] for column in found))


def cosines(tiles: Tiles, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) float64 cosines of pairs of vectors by number, read tile by tile."""
    found = np.empty(len(first), np.float64)
    one, other = first // tiles.size, second // tiles.size
    keys = one * len(tiles) + other
    for key in np.unique(keys):
        places = np.flatnonzero(keys == key)
        left, right = int(key) // len(tiles), int(key) % len(tiles)
        own = first[places] - left * tiles.size, second[places] - right * tiles.size
        found[places] = exact_cosines(tiles[left], own[0], tiles[right], own[1])
    return found
