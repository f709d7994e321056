"""Finding the files of a benchmark, and saying what to do where they are missing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from mllm_align_eval.items import Picture


def require_file(path: Path, origin: str) -> Path:
    """The path, if it is a file; FileNotFoundError with where to get it otherwise."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: get it from {origin}")
    return path


class PictureFolder:
    """Pictures by the names that annotations give them.

    Args:
        root: The folder; None where nothing is shown and only questions are read. Loading one is an error then.
        origin: Where the pictures come from.
    """

    def __init__(self, root: str | os.PathLike[str] | None, origin: str) -> None:
        self.root = Path(root) if root is not None else None
        self.origin = origin

    def __call__(self, name: str) -> Picture:
        """The picture of a name."""
        if self.root is None:
            return Picture(name, partial(_no_folder, name, self.origin))
        return Picture(name, partial(open_image, self.root / name))

    def check(self, names: Iterable[str]) -> None:
        """Raises FileNotFoundError if some are not there, one message for all; asks nothing where there is no root."""
        if self.root is None:
            return
        wanted = list(dict.fromkeys(names))
        if wanted and not self.root.is_dir():
            raise FileNotFoundError(
                f"no folder {self.root}: put the images there ({wanted[0]} and so on), from {self.origin}; or name "
                "the folder that holds them with --images"
            )
        missing = [name for name in wanted if not (self.root / name).is_file()]
        if missing:
            lower = next((path for path in sorted(self.root.glob("*/")) if (path / missing[0]).is_file()), None)
            mend = f"name {lower} with --images" if lower else f"get them from {self.origin} and put them there"
            raise FileNotFoundError(
                f"{len(missing)} of {len(wanted)} images are not in {self.root} (first: {missing[0]}): {mend}"
            )


def open_image(path: Path) -> Image.Image:
    """A picture in RGB; ValueError naming the file if it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"cannot read the image {path}: no picture, or of an unknown kind") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's for a broken PNG is the second
        raise ValueError(f"cannot read the image {path}: {error}") from error


def read_json(path: Path, origin: str) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: If it is not there; with its origin.
        ValueError: If it is no JSON.
    """
    try:
        return json.loads(require_file(path, origin).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def read_lines(path: Path, columns: Iterable[str], origin: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The number and the object of each line of a JSONL file.

    Raises:
        FileNotFoundError: If it is not there; with its origin.
        ValueError: Naming the line that is not an object with all `columns`.
    """
    wanted = set(columns)
    with require_file(path, origin).open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}, is not JSON: {error}") from error
            if not isinstance(row, Mapping) or not wanted <= row.keys():
                raise ValueError(f"{path}, line {number}: not an object with {', '.join(sorted(wanted))}")
            yield number, row


def _no_folder(name: str, origin: str) -> Image.Image:
    raise FileNotFoundError(f"image {name} is needed and no folder of images was named: get them from {origin}")
