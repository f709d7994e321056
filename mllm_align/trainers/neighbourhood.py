"""Which rows are near to which: by a column, by vectors in a file, or by vectors that were measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mllm_align.data.images import image_key
from mllm_align.data.mine.listing import list_images
from mllm_align.data.mine.scan import nearest
from mllm_align.data.mine.vector_files import NAMES, SUFFIXES, load_vectors
from mllm_align.data.schema import DataError, row_name
from mllm_align.trainers.gather import gather_on_host

# Given how many, (N, k) rows near to each, nearest first; -1 for none. May be a collective.
Neighbourhood = Callable[[int], np.ndarray]


def nowhere(num_rows: int) -> Neighbourhood:
    """No row is near to any."""
    return lambda count: np.full((num_rows, count), -1)


def given_neighbourhood(source: str, rows: Any, seed: int, rank: int, num_ranks: int, device: Any) -> Neighbourhood:
    """What a setting names.

    Args:
        source: A .npy or .npz file with a vector for each row (`data.mine.vector_files`), or of both sides, images
            and texts, or one of `mllm-align encode` with the rows' images; or a column: with lists, the ids of the
            nearest rows; else what rows that are near have in common.
        rows: The training data.
        seed: Of the draws among rows of one value.
        rank: This process.
        num_ranks: Of how many.
        device: Where vectors are compared.

    Raises:
        DataError: If there is no such file or column, or it does not tell of these rows.
    """
    if Path(source).suffix not in SUFFIXES:
        return _by_column(source, rows, seed)
    images, texts = _sides(source, rows)
    if not len(images) == len(texts) == len(rows):
        raise DataError(
            f"{source} holds {len(images)} image and {len(texts)} text vectors for {len(rows)} training rows: one of "
            "each per row is wanted"
        )
    everywhere = np.arange(len(rows))

    def search(count: int) -> np.ndarray:
        own = everywhere[rank::num_ranks]
        return near_rows(len(rows), own, images[own], everywhere, texts, count, device)

    return search


def _sides(source: str, rows: Any) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of each row's image and text; of a file that tells what its vectors are of, the images' for both."""
    path = Path(source).expanduser()
    told = path.suffix == ".npz" and path.is_file() and NAMES["image"] in np.load(path).files
    if not told:
        return load_vectors(source, "image"), load_vectors(source, "text")
    images = load_vectors(source, "image", list_images(rows).keys)
    return images, images


def near_rows(
    num_rows: int,
    own: np.ndarray,
    queries: np.ndarray,
    candidates: np.ndarray,
    vectors: np.ndarray,
    count: int,
    device: Any,
) -> np.ndarray:
    """The rows whose vectors are most similar to each row's query, of the rows of all processes (a collective).

    Args:
        num_rows: N.
        own: (Q,) rows whose queries this process has.
        queries: (Q, d) float32 of length 1.
        candidates: (C,) rows that have a vector, rising.
        vectors: (C, d) float32 of length 1.
        count: k.
        device: Where products are taken.

    Returns:
        (N, k) int64, itself left out, most similar first, equal ones by row; -1 where there is none.
    """
    found = np.full((len(own), count), -1)
    k = min(count + 1, len(candidates))
    if k and len(own):
        numbers, _ = nearest(vectors, queries, k, device)
        for place, rows in enumerate(candidates[numbers]):
            others = rows[rows != own[place]][:count]
            found[place, : len(others)] = others
    whole = np.full((num_rows, count), -1)
    for rows, near in gather_on_host((own, found)):
        whole[rows] = near
    return whole


def row_keys(rows: Any, column: str | None) -> np.ndarray:
    """(N,) int64 from 0, equal for rows that may not come in one batch.

    Args:
        rows: The training data.
        column: Whose value tells them; by default rows of the same pictures are kept apart.

    Raises:
        DataError: If a row has no such column, or a picture that cannot be read.
    """
    numbers: dict[Any, int] = {}
    keys = []
    for number in range(len(rows)):
        row = rows[number]
        if column is None:
            key: Any = _pictures(row, number)
        elif row.get(column) is None:
            raise DataError(
                f"train_dataset: {row_name(row, number)} has nothing in column {column!r}, which mine_batches_id "
                "names: add it, or leave mine_batches_id out to tell rows by their pictures"
            )
        else:
            key = str(row[column])
        keys.append(numbers.setdefault(key, len(numbers)))
    return np.array(keys, np.int64)


def _pictures(row: Any, number: int) -> Any:
    given = row.get("image") if row.get("image") is not None else row.get("images")
    images = given if isinstance(given, list | tuple) else [] if given is None else [given]
    where = f"train_dataset: {row_name(row, number)}"
    return tuple(image_key(image, where) for image in images) or number


def _by_column(column: str, rows: Any, seed: int) -> Neighbourhood:
    values, names = [], []
    for number in range(len(rows)):
        value = rows[number].get(column)
        if value is None:
            raise DataError(
                f"train_dataset: {row_name(rows[number], number)} has nothing in column {column!r}, which "
                "mine_batches_from names: add it (ids of near rows, or a cluster), or name a .npy or .npz file"
            )
        values.append([str(each) for each in value] if isinstance(value, list | tuple) else str(value))
        names.append(rows[number].get("id"))
    if isinstance(values[0], list):
        return _by_ids(column, values, names)
    members: dict[Any, list[int]] = {}
    for number, value in enumerate(values):
        members.setdefault(str(value), []).append(number)

    def draw(count: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        found = np.full((len(values), count), -1)
        for rows_of in members.values():
            for number in rows_of:
                others = _others(rng, np.array(rows_of), number, count)
                found[number, : len(others)] = others
        return found

    return draw


def _others(rng: np.random.Generator, rows: np.ndarray, number: int, count: int) -> np.ndarray:
    """Some other rows of those of one value, in any order; without a permutation of all where these are many."""
    if len(rows) > 4 * count:
        rows = rows[np.unique(rng.integers(len(rows), size=2 * count))]
    return rng.permutation(rows[rows != number])[:count]


def _by_ids(column: str, values: list[Any], names: list[Any]) -> Neighbourhood:
    places: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        if name is not None:
            places.setdefault(str(name), []).append(number)
    near = [
        [place for each in own for place in places.get(each, ()) if place != number] if isinstance(own, list) else []
        for number, own in enumerate(values)
    ]
    if not any(near):
        raise DataError(
            f"train_dataset: no list in column {column!r}, which mine_batches_from names, has the id of a row: they "
            "are values of column 'id'"
        )

    def cut(count: int) -> np.ndarray:
        found = np.full((len(near), count), -1)
        for number, own in enumerate(near):
            found[number, : min(count, len(own))] = own[:count]
        return found

    return cut
