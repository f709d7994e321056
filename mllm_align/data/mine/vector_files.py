"""Vectors that somebody else has made, in files of NumPy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np

from mllm_align.data.errors import DataError

SUFFIXES = (".npy", ".npz")
# What vectors of a side are of, in a file of `mllm-align encode`.
NAMES = {"image": "image_names", "text": "texts"}


def load_vectors(path: str | os.PathLike[str], side: str, wanted: Sequence[str] | None = None) -> np.ndarray:
    """The vectors of one side, made as long as 1.

    Args:
        path: A .npy file with (N, d) numbers, or a .npz file that holds such an array as `image_vectors`, `image` or
            `images` (of texts likewise), or one array alone.
        side: "image" or "text".
        wanted: What the vectors are to be of: paths of images, or texts. A file that tells (`image_names`, ends of
            paths, or `texts`, as `mllm-align encode` writes them) is searched; any other is taken to be in this order.

    Returns:
        (N, d) float32.

    Raises:
        DataError: If there is no such file or array, a vector is zero or not finite, or what is wanted is not there.
    """
    path = Path(path).expanduser()
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: vectors are read from {' or '.join(SUFFIXES)} files, not this")
    if not path.is_file():
        raise DataError(f"there is no file of vectors {path}")
    try:
        held = np.load(path)
        arrays = {"": held} if isinstance(held, np.ndarray) else {name: held[name] for name in held.files}
    except ValueError as error:
        raise DataError(f"{path} holds no plain array: {error}") from None
    array = _of_side(arrays, side, path)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.number):
        raise DataError(f"{path}: vectors are numbers of shape (N, d), not {array.dtype} of {array.shape}")
    names = arrays.get(NAMES[side])
    if wanted is not None and names is not None and names.dtype.kind == "U":
        array = array[_places(names.tolist(), wanted, side, path)]
    vectors = array.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)).all(1))
    if len(bad):
        raise DataError(f"{path}: {side} vector {bad[0]} is zero or not finite, so it is like no other")
    return (vectors / norms).astype(np.float32)


def digest_of(vectors: np.ndarray) -> str:
    """Equal for equal vectors."""
    found = hashlib.blake2b(repr(vectors.shape).encode(), digest_size=8)
    found.update(np.ascontiguousarray(vectors).view(np.uint8).data)
    return found.hexdigest()


def _of_side(arrays: Mapping[str, np.ndarray], side: str, path: Path) -> np.ndarray:
    tables = {name: array for name, array in arrays.items() if array.dtype.kind not in "US"}
    for name in (f"{side}_vectors", side, f"{side}s"):
        if name in tables:
            return tables[name]
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    raise DataError(
        f"{path} holds {', '.join(arrays) or 'nothing'}, but no numbers called '{side}_vectors' or {side!r}"
    )


def _places(names: Sequence[str], wanted: Sequence[str], side: str, path: Path) -> list[int]:
    places = {name: place for place, name in enumerate(names)}
    found: list[int] = []
    taken: dict[int, str] = {}
    for each in wanted:
        ends = [each]
        if side == "image":
            # Names are below some folder, wanted paths may be below another one or whole.
            parts = PurePath(each).parts
            ends = ["/".join(parts[start:]) for start in range(len(parts))]
        place = next((places[end] for end in ends if end in places), None)
        if place is None:
            raise DataError(f"{path} has no vector of the {side} {each!r}: encode it too")
        other = taken.get(place, each)
        if side == "image" and not _one_file(other, each):
            raise DataError(
                f"{path} has one vector, {names[place]!r}, for the images {other!r} and {each!r}: encode the folder "
                "that holds both"
            )
        taken[place] = max(other, each, key=len)
        found.append(place)
    return found


def _one_file(first: str, second: str) -> bool:
    """Whether two paths may be of one file: the shorter is how the longer one ends."""
    short, long = sorted((PurePath(first).parts, PurePath(second).parts), key=len)
    return long[len(long) - len(short) :] == short
