"""A trained encoder in the place of a CLIP-like one, where data is mined."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_WHOLE = 2**30  # bytes up to which a file is read for its digest


class TrainedEmbedder:
    """Does what `data.mine.dual_embedder.DualEmbedder` does, with a vision-language model trained to embed.

    Args:
        folder: Of the encoder: one with `embedding.json`, or a Hub id.
        batch_size: Images or texts at a time.
        **overrides: Of `load_encoder`.

    Attributes:
        name: How it is called in few words.
        identity: Tells it apart from others.
        dim: Length of a vector.
    """

    def __init__(self, folder: str, batch_size: int, **overrides: Any) -> None:
        from mllm_align.encoding import load_encoder

        self._encoder = load_encoder(folder, **overrides)
        self.batch_size = batch_size
        self.name = Path(folder).name
        self.identity = f"{self.name} {_digest(Path(folder))} {overrides.get('dtype')}"
        self.dim = self.texts(["?"]).shape[1]

    def prepare(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Nothing is done ahead: the images themselves."""
        return list(images)

    def vectors(self, images: Sequence[Image.Image]) -> np.ndarray:
        """(N, d) float32 vectors of length 1 of images."""
        return self._encoder.encode(images, batch_size=self.batch_size)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, d) float32 vectors of length 1 of texts."""
        return self._encoder.encode(texts=list(texts), batch_size=self.batch_size)


def _digest(folder: Path) -> str:
    """Of the files that say what the encoder is; of very large ones of name and size alone."""
    digest = hashlib.blake2b(str(folder).encode() if not folder.is_dir() else b"", digest_size=8)
    for file in sorted(folder.glob("*")):
        if file.suffix in (".json", ".safetensors") and file.is_file():
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode())
            digest.update(file.read_bytes() if size <= _WHOLE else b"")
    return digest.hexdigest()
