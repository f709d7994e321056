"""Vectors on disk: what is read from a folder or a file of lines, and the one file that is written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mllm_align.data.mine.listing import SUFFIXES


def images_in(folder: str | os.PathLike[str]) -> list[Path]:
    """The images of a folder and of those below it, by name; other files are passed over.

    Raises:
        ValueError: If there is no such folder, no image in it, or a file that is called like one is none.
    """
    place = Path(folder)
    if not place.is_dir():
        there = "it is a file" if place.exists() else "there is nothing"
        raise ValueError(f"no folder of images at {str(place)!r}: {there}; name a folder")
    found = sorted(file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise ValueError(f"no image in {str(place)!r}: files of {', '.join(SUFFIXES)} are read")
    for file in found:
        try:
            Image.open(file).close()  # its head alone, so that hours of reading do not end here
        except (OSError, ValueError) as error:
            raise ValueError(f"{str(file)!r} is no image that can be read: mend it, or move it away") from error
    return found


def texts_in(file: str | os.PathLike[str]) -> list[str]:
    """The lines of a file, without those that are empty.

    Raises:
        ValueError: If it cannot be read as UTF-8, or has no line with something in it.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        # The error of a file names it once more.
        why = error.strerror if isinstance(error, OSError) else error
        raise ValueError(
            f"no texts could be read from {os.fspath(file)!r}: {why}; name a file with one a line"
        ) from error
    found = [line for line in lines if line.strip()]
    if not found:
        raise ValueError(f"{os.fspath(file)!r} is empty: write one text a line")
    return found


def free_file(file: str | os.PathLike[str]) -> Path:
    """Where vectors will be written.

    Raises:
        ValueError: If it is no name of an .npz file, or something is there: a file is never written over.
    """
    target = Path(file)
    if target.suffix != ".npz":
        raise ValueError(f"output must end in .npz, got {str(target)!r}")
    if target.exists():
        raise ValueError(f"{str(target)!r} is there already and is kept: name another file")
    return target


def save_vectors(
    file: str | os.PathLike[str],
    *,
    images: tuple[Sequence[str], np.ndarray] | None = None,
    texts: tuple[Sequence[str], np.ndarray] | None = None,
) -> Path:
    """Writes vectors with what they are of, whole or not at all.

    `numpy.load` gives `image_names` (N,) and `image_vectors` (N, d), `texts` (M,) and `text_vectors` (M, d).

    Args:
        file: Ends in .npz.
        images: Names and vectors of images.
        texts: Texts and their vectors.

    Raises:
        ValueError: As `free_file`.
    """
    target = free_file(file)
    arrays = {}
    if images is not None:
        arrays |= {"image_names": np.array(images[0], dtype=str), "image_vectors": images[1]}
    if texts is not None:
        arrays |= {"texts": np.array(texts[0], dtype=str), "text_vectors": texts[1]}
    target.parent.mkdir(parents=True, exist_ok=True)
    started = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with started.open("wb") as stream:
            np.savez(stream, **arrays)
        started.replace(free_file(target))  # once more: it may have come to be there meanwhile
    finally:
        started.unlink(missing_ok=True)
    return target
