"""Encoders of images and texts that need no model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mllm_align_eval.similarity import Vectors, loaded


class Drawn:
    """Of each image and of each text a vector that its content decides; counts what it is given."""

    def __init__(self, dimensions: int = 16, seed: int = 0) -> None:
        self.dimensions, self.seed = dimensions, seed
        self.num_images = self.num_texts = 0

    def images(self, pictures: Sequence[Any], /) -> Vectors:
        """(N, d), by the pixels."""
        self.num_images += len(pictures)
        return self._unit([self.vector(loaded(picture).tobytes()) for picture in pictures])

    def texts(self, texts: Sequence[str], /) -> Vectors:
        """(N, d), by the words."""
        self.num_texts += len(texts)
        return self._unit([self.vector(text.encode()) for text in texts])

    def vector(self, content: bytes) -> np.ndarray:
        """A normal vector of no certain length."""
        number = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
        return np.random.default_rng([self.seed, number]).normal(size=self.dimensions)

    def _unit(self, vectors: list[np.ndarray]) -> Vectors:
        found = np.stack(vectors) if vectors else np.empty((0, self.dimensions))
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


class Constant(Drawn):
    """The same vector of everything, unseen and unread: what a model that collapsed gives."""

    def images(self, pictures: Sequence[Any], /) -> Vectors:
        """(N, d), all rows equal."""
        return self.texts(["" for _ in pictures])

    def vector(self, content: bytes) -> np.ndarray:
        """The vector."""
        return np.random.default_rng(self.seed).normal(size=self.dimensions)


class Told(Drawn):
    """Vectors of images and of texts by functions of their own."""

    def __init__(self, image: Callable[[Any], Any], text: Callable[[str], Any]) -> None:
        super().__init__()
        self.image, self.text = image, text

    def images(self, pictures: Sequence[Any], /) -> Vectors:
        """(N, d), by the function of images."""
        return self._unit([np.asarray(self.image(picture), float) for picture in pictures])

    def texts(self, texts: Sequence[str], /) -> Vectors:
        """(N, d), by the function of texts."""
        return self._unit([np.asarray(self.text(text), float) for text in texts])
