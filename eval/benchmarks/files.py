"""Finding the files of a benchmark, and saying what to do where they are missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from PIL import Image, UnidentifiedImageError

DATA_VARIABLE = "MLLM_ALIGN_DATA"


def annotation_folder(given: str | os.PathLike[str] | None, name: str, origin: str) -> Path:
    """The folder of a benchmark's annotation files: the one given, else `$MLLM_ALIGN_DATA/<name>`.

    Raises:
        FileNotFoundError: If there is no such folder, or none was named.
    """
    root = os.environ.get(DATA_VARIABLE)
    if given is None and not root:
        raise FileNotFoundError(
            f"no annotations of {name}: get them from {origin} and pass their folder, or set {DATA_VARIABLE} to a "
            f"folder that holds them as {name}/"
        )
    folder = Path(given) if given is not None else Path(root or "") / name
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: put the annotations of {name} there, from {origin}")
    return folder


def require_file(path: Path, origin: str) -> Path:
    """The path, if it is a file; FileNotFoundError with where to get it otherwise."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: get it from {origin}")
    return path


def image_loaders(
    folder: str | os.PathLike[str], names: Iterable[str], origin: str
) -> dict[str, Callable[[], Image.Image]]:
    """A loader for each picture of a folder.

    Raises:
        FileNotFoundError: If some are not there; one message for all.
    """
    root, wanted = Path(folder), list(dict.fromkeys(names))
    missing = [name for name in wanted if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(wanted)} images are not in {root} (first: {missing[0]}): get them from {origin}"
        )
    return {name: partial(open_image, root / name) for name in wanted}


def open_image(path: Path) -> Image.Image:
    """A picture in RGB; ValueError naming the file if it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"cannot read the image {path}: {error}") from error
