"""Tensors on disk, one file per key: safe with many writers, and with a writer that is killed in the middle."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mllm_align.data.files import write_whole

logger = logging.getLogger(__name__)

ABOUT = "cache.json"
SUFFIX = ".safetensors"


class TensorFiles:
    """A folder with one safetensors file per key, and a `cache.json` that says what it is.

    A file appears whole or not at all, so any number of processes may read and write; the last writer of a key wins.
    What cannot be read is treated as absent. Picklable; the folder is made when something is first written.

    Args:
        folder: Where to keep the files, in sub-folders by the first two characters of the key.
        about: What the folder holds and what it was made of, for people who find it.
    """

    def __init__(self, folder: str | os.PathLike[str], about: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.about = dict(about)
        self._refused = False

    def get(self, key: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Tensors (memory-mapped) and the text kept with them, or None where there is no readable file."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            logger.warning("%s cannot be read and is made again (%s)", path, error)
            return None

    def put(self, key: str, tensors: Mapping[str, Tensor], text: Mapping[str, str] | None = None) -> None:
        """Keeps tensors, dtypes as they are, and a few strings.

        Raises:
            OSError: If the disk refuses.
        """
        if not (self.folder / ABOUT).exists():
            content = json.dumps(self.about, indent=1, default=str, ensure_ascii=False) + "\n"
            write_whole(self.folder / ABOUT, content.encode())
        own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        write_whole(self._path(key), save(own, dict(text or {})))

    def offer(self, key: str, tensors: Mapping[str, Tensor], text: Mapping[str, str] | None = None) -> None:
        """As `put`, for what can be made again at any time: a disk that refuses is a warning, and nothing more."""
        if self._refused:
            return
        try:
            self.put(key, tensors, text)
        except OSError as error:
            self._refused = True
            logger.warning("nothing more is cached in %s: %s. Make room there, or set cache_dir", self.folder, error)

    def keys(self) -> Iterator[str]:
        """Every key that has a file."""
        for path in sorted(self.folder.glob(f"??/*{SUFFIX}")):
            yield path.name.removesuffix(SUFFIX)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{SUFFIX}"
