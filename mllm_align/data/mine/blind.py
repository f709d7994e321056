"""The texts of rows without their images, and which rows must stay together when they are cross-validated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mllm_align.data.errors import DataError
from mllm_align.data.loading import undecoded
from mllm_align.data.messages import PLACEHOLDER
from mllm_align.data.mine.pairs import CATEGORY_COLUMNS, image_name
from mllm_align.data.mine.probes import TextPair
from mllm_align.data.mine.problems import Problems, RowProblem
from mllm_align.data.mine.selection import rank
from mllm_align.data.mine.splitting import components
from mllm_align.data.schema import parse_row


class BlindRows(NamedTuple):
    """The texts of rows, with what keeps them together.

    Attributes:
        pairs: (N,) texts.
        categories: (N,) names; "" for none.
        images: (N,) what names the images of each.
        places: (N,) numbers of the rows that could be read.
        problems: Of the others.
    """

    pairs: list[TextPair]
    categories: list[str]
    images: list[tuple[str, ...]]
    places: list[int]
    problems: Problems


def read_texts(rows: Any, category: str | None = None) -> BlindRows:
    """The texts of canonical rows; images are named, not read.

    Args:
        rows: Anything that gives mappings when iterated.
        category: The column that holds a row's category; `category` or `kind` by default.
    """
    columns = CATEGORY_COLUMNS if category is None else (category,)
    found = BlindRows([], [], [], [], Problems())
    for number, raw in enumerate(undecoded(rows)):
        try:
            row = parse_row(raw, number)
            if "chosen" not in row.responses:
                raise DataError(f"{row.name}: no column 'chosen'")
            images = (*row.images, *(row.contrast_images or ()))
            named = tuple(dict.fromkeys(image_name(image) for image in images))
        except DataError as error:
            found.problems.add(RowProblem("invalid row", str(error)))
            continue
        texts = [part["text"] for turn in row.messages for part in turn["content"] if part["type"] == "text"]
        contrasted = row.contrast_images is not None
        found.pairs.append(
            TextPair(
                " ".join(texts).replace(PLACEHOLDER, " "),
                row.responses["chosen"],
                row.responses.get("rejected"),
                contrasted,
            )
        )
        found.categories.append(next((str(raw[name]) for name in columns if raw.get(name) is not None), ""))
        found.images.append(named)
        found.places.append(number)
    return found


def clusters_of(images: Sequence[tuple[str, ...]]) -> tuple[list[Hashable], str]:
    """For each row what it is to be kept together with, and in words what rows of one cluster share."""
    connected = components(images)
    if Counter(connected).most_common(1)[0][1] <= max(1, len(images) // 2):
        return list(connected), "rows that share an image, directly or through others"
    same = components([("|".join(sorted(names)),) if names else () for names in images])
    return list(same), "rows with the very same images: shared images connect more than half of the rows"


def folds_of(clusters: Sequence[Hashable], folds: int, seed: int) -> np.ndarray:
    """(N,) the fold of each row: whole clusters, the largest first, each to the smallest fold."""
    sizes = Counter(clusters)
    load = [0] * folds
    fold_of = {}
    for cluster in sorted(sizes, key=lambda cluster: (-sizes[cluster], rank(seed, cluster))):
        fold = load.index(min(load))
        fold_of[cluster] = fold
        load[fold] += sizes[cluster]
    return np.array([fold_of[cluster] for cluster in clusters])
