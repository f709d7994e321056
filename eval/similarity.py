"""Rows of scores from whatever embeds images and texts in one space: a dual encoder, or an LVLM trained to embed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from mllm_align_eval.items import Item, Picture
from mllm_align_eval.matrices import ANCHOR, IMAGE_TO_TEXT, NUM_SCORES, TEMPLATES, TEXT_TO_IMAGE, rows_of

Vectors = np.ndarray[Any, np.dtype[np.float32]]
BLOCK = 1024  # rows or columns of a matrix that are in double precision at a time


class Encoder(Protocol):
    """What gives an image and a text a vector in one space; similarity is the cosine."""

    def images(self, pictures: Sequence[Picture | Image.Image], /) -> Vectors:
        """(N, d) float32 vectors of length 1 of some images; a `Picture` is loaded when it is its turn."""
        ...

    def texts(self, texts: Sequence[str], /) -> Vectors:
        """(N, d) float32 vectors of length 1 of some texts."""
        ...


def similarity_rows(encoder: Encoder, items: Sequence[Item]) -> dict[str, Sequence[float]]:
    """By item id its scores: of its captions or classes for its image or text, or of all candidates of a query.

    Each image and each text is embedded once, so that equal texts have equal scores.

    Args:
        encoder: Whose cosines the scores are.
        items: Those of one or several benchmarks.

    Raises:
        ValueError: If an item is not to be answered by scores of captions, or of the other side; if embeddings of
            images and of texts are not equally wide.
    """
    check_scored_by_rows(items)
    found = _choices(encoder, [item for item in items if item.is_closed])
    for name in dict.fromkeys(item.benchmark for item in items if not item.is_closed):
        found |= _queries(encoder, [item for item in items if item.benchmark == name and not item.is_closed])
    return found


def check_scored_by_rows(items: Sequence[Item]) -> None:
    """Raises ValueError, naming the first item that is answered by a text and not by a row of scores."""
    odd = next((item for item in items if NUM_SCORES not in item.truth), None)
    if odd is not None:
        raise ValueError(f"{odd.id!r} is no question that a dual encoder can answer: it needs no row of scores")


def loaded(picture: Picture | Image.Image) -> Image.Image:
    """The picture in RGB."""
    # An image has a `load` as well, which gives something else.
    return (picture if isinstance(picture, Image.Image) else picture.load()).convert("RGB")


def cosines(first: Vectors, second: Vectors) -> Vectors:
    """(N, M) float32 cosines of (N, d) and (M, d) vectors of length 1.

    Sums are in double precision and rounded once: a matrix product in single precision adds up in an order that
    depends on the place in the matrix, and would let chance decide between vectors that are equal.

    Raises:
        ValueError: If the vectors are not equally wide.
    """
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"vectors of {first.shape[1]} and of {second.shape[1]} numbers cannot be compared")
    found = np.empty((len(first), len(second)), np.float32)
    for column in range(0, len(second), BLOCK):
        across = second[column : column + BLOCK].astype(np.float64).T
        for row in range(0, len(first), BLOCK):
            found[row : row + BLOCK, column : column + BLOCK] = first[row : row + BLOCK].astype(np.float64) @ across
    return found


def mean_vectors(vectors: Vectors, per_mean: int) -> Vectors:
    """(N / per_mean, d) directions of the means of every `per_mean` vectors, of length 1; zero where they cancel."""
    if per_mean == 1:
        return vectors
    means = vectors.reshape(-1, per_mean, vectors.shape[1]).astype(np.float64).mean(axis=1)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    return (means / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def _choices(encoder: Encoder, items: Sequence[Item]) -> dict[str, Sequence[float]]:
    if not items:
        return {}
    shown: dict[tuple[Any, ...], Picture] = {}
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Item]] = {}
    for item in items:
        if ANCHOR not in item.truth:
            shown.setdefault(_key(item), item.pictures[0])
        groups.setdefault((item.choices, tuple(item.truth.get(TEMPLATES, ()))), []).append(item)
    anchors = [item.truth[ANCHOR] for item in items if ANCHOR in item.truth]
    filled = {group: _filled(*group) for group in groups}
    written = list(dict.fromkeys([*anchors, *(text for texts in filled.values() for text in texts)]))
    images = encoder.images(list(shown.values())) if shown else None
    texts = encoder.texts(written)
    row, column = _places(shown), _places(written)
    found: dict[str, Sequence[float]] = {}
    for group, members in groups.items():
        candidates = mean_vectors(texts[[column[text] for text in filled[group]]], max(1, len(group[1])))
        given = [_vector(item, images, texts, row, column) for item in members]
        found |= rows_of(members, cosines(np.stack(given), candidates))
    return {item.id: found[item.id] for item in items}


def _filled(choices: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Each choice in each template, those of one choice together; the choices themselves where there is none."""
    return [text.replace("{}", choice) for choice in choices for text in templates] if templates else list(choices)


def _vector(
    item: Item, images: Vectors | None, texts: Vectors, row: Mapping[Any, int], column: Mapping[Any, int]
) -> Vectors:
    """What an item's candidates are compared with: its image, or its text."""
    if ANCHOR in item.truth or images is None:
        return texts[column[item.truth[ANCHOR]]]
    return images[row[_key(item)]]


def _queries(encoder: Encoder, items: Sequence[Item]) -> dict[str, Sequence[float]]:
    images = [item for item in items if item.split == IMAGE_TO_TEXT]
    texts = [item for item in items if item.split == TEXT_TO_IMAGE]
    if any(item.truth[NUM_SCORES] != len(texts) for item in images) or any(
        item.truth[NUM_SCORES] != len(images) for item in texts
    ):
        raise ValueError("retrieval needs the queries of all images and all texts; some are missing")
    written = list(dict.fromkeys(item.prompt for item in texts))
    place = _places(written)
    vectors = encoder.texts(written)[[place[item.prompt] for item in texts]]
    matrix = cosines(encoder.images([item.pictures[0] for item in images]), vectors)
    return rows_of(images, matrix) | rows_of(texts, matrix.T)


def _key(item: Item) -> tuple[Any, ...]:
    """What tells the images of items apart: their benchmark's name for them, and the part that is shown."""
    return (item.benchmark, item.pictures[0].name, *item.truth.get("crop", ()))


def _places(values: Any) -> dict[Any, int]:
    return {value: index for index, value in enumerate(values)}
