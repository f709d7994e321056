"""A matrix of similarities, images by texts, as the answers to the queries of a retrieval benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mllm_align_eval.items import Item

MATRIX_SUFFIXES = (".npy", ".npz")
# In `Item.truth`: how many candidates need a score each. Such a question is answered by a row of scores, not a text.
NUM_SCORES = "num_scores"
# A text that the choices are compared with in place of an image; what each choice is put into before it is embedded.
ANCHOR, TEMPLATES = "anchor", "templates"
IMAGE_TO_TEXT, TEXT_TO_IMAGE = "image_to_text", "text_to_image"


def read_matrix(path: Path, items: Sequence[Item]) -> dict[str, Sequence[float]]:
    """The scores of each query in a .npy file of similarities (images, texts), or in a .npz file.

    An .npz file holds one such array under any name, or `i2t` (images, texts) and `t2i` (texts, images), which differ
    where candidates are ranked again by a second model. Rows are in the order of the queries.

    Raises:
        ValueError: If the items are no queries, or the arrays are not of their shape or hold what is no number.
    """
    images = [item for item in items if item.split == IMAGE_TO_TEXT and NUM_SCORES in item.truth]
    texts = [item for item in items if item.split == TEXT_TO_IMAGE and NUM_SCORES in item.truth]
    if not images or not texts:
        raise ValueError(f"{path} is a matrix: these questions are not queries for images and texts; give JSON lines")
    forward, backward = _load(path)
    for name, matrix, shape in (
        ("images by texts", forward, (len(images), len(texts))),
        ("texts by images", backward, (len(texts), len(images))),
    ):
        if matrix.shape != shape:
            raise ValueError(f"{path}: an array of shape {matrix.shape} instead of {shape}, {name}")
        if not np.issubdtype(matrix.dtype, np.floating) or np.isnan(matrix).any():
            raise ValueError(f"{path}: not all similarities are numbers (floating point, none of them NaN)")
    return rows_of(images, forward) | rows_of(texts, backward)


def rows_of(queries: Sequence[Item], matrix: np.ndarray[Any, Any]) -> dict[str, Sequence[float]]:
    """By query id its row of the matrix (queries, candidates), not copied."""
    return {query.id: memoryview(row) for query, row in zip(queries, matrix, strict=True)}


def _load(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images by texts, and texts by images."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, loaded.T
        arrays = {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"cannot read the matrix {path}: {error}") from error
    if set(arrays) == {"i2t", "t2i"}:
        return arrays["i2t"], arrays["t2i"]
    if len(arrays) != 1:
        raise ValueError(f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; needed is one array, or i2t and t2i")
    (only,) = arrays.values()
    return only, only.T
