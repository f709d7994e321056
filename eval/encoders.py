"""Encoders by name: a dual encoder, an LVLM that was trained to embed, or one that was not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoConfig

from mllm_align.encoding import Encoder as TrainedEncoder
from mllm_align.encoding import has_embedding, load_embedding, load_encoder
from mllm_align.families import family_of
from mllm_align.models import load_model, model_path
from mllm_align_eval.dual_encoder import DualEncoder
from mllm_align_eval.items import Picture
from mllm_align_eval.similarity import Encoder, Vectors, loaded

LOADED_AT_ONCE = 256  # pictures in memory


class EmbeddingModel:
    """A vision-language model with `mllm_align.encoding.Encoder`, as benchmarks of embeddings take it.

    Args:
        encoder: The encoder.
        batch_size: Images or texts at a time.

    Raises:
        ValueError: If the batch size is less than 1.
    """

    def __init__(self, encoder: TrainedEncoder, batch_size: int = 32) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.encoder, self.batch_size = encoder, batch_size

    def images(self, pictures: Sequence[Picture | Image.Image], /) -> Vectors:
        """(N, d) float32 vectors of length 1 of some images; a `Picture` is loaded when it is its turn."""
        parts = [
            self.encoder.encode(images=[loaded(picture) for picture in part], batch_size=self.batch_size)
            for part in (pictures[start : start + LOADED_AT_ONCE] for start in range(0, len(pictures), LOADED_AT_ONCE))
        ]
        return _finite(np.concatenate(parts)) if parts else np.empty((0, 0), np.float32)

    def texts(self, texts: Sequence[str], /) -> Vectors:
        """(N, d) float32 vectors of length 1 of some texts, read without any image."""
        return _finite(self.encoder.encode(texts=list(texts), batch_size=self.batch_size))


class Leading:
    """Another encoder's vectors cut to their leading numbers, as Matryoshka training prepares them for.

    Kusupati et al., 2022, https://arxiv.org/abs/2205.13147.

    Args:
        encoder: The other encoder.
        dimensions: How many numbers are kept.

    Raises:
        ValueError: Where vectors are made, if they have fewer.
    """

    def __init__(self, encoder: Encoder, dimensions: int) -> None:
        self.encoder, self.dimensions = encoder, dimensions

    def images(self, pictures: Sequence[Picture | Image.Image], /) -> Vectors:
        """(N, dimensions) float32 vectors of length 1 of some images."""
        return self._cut(self.encoder.images(pictures))

    def texts(self, texts: Sequence[str], /) -> Vectors:
        """(N, dimensions) float32 vectors of length 1 of some texts."""
        return self._cut(self.encoder.texts(texts))

    def _cut(self, vectors: Vectors) -> Vectors:
        if not 1 <= self.dimensions <= vectors.shape[1]:
            raise ValueError(f"vectors have {vectors.shape[1]} numbers: {self.dimensions} of them cannot be kept")
        kept = vectors[:, : self.dimensions]
        lengths = np.linalg.norm(kept, axis=1, keepdims=True)
        return kept / np.where(lengths > 0, lengths, 1)


def encoder_of(
    name: str | os.PathLike[str],
    *,
    like: str | os.PathLike[str] | None = None,
    batch_size: int = 32,
    load_in_4bit: bool = False,
) -> Encoder:
    """The encoder of a folder or a Hub id.

    A folder with `embedding.json`, an adapter or a whole model, is what it was trained to be. Any other
    vision-language model is read behind instructions, without training: behind those of `like`, or the default ones.
    All else must be a dual encoder.

    Args:
        name: Folder, Hub id, or "demo-base".
        like: Folder of a trained encoder whose instructions an untrained model is read behind.
        batch_size: Images or texts at a time.
        load_in_4bit: NF4 with double quantisation, of a vision-language model.

    Raises:
        ValueError: If it cannot be loaded, is no encoder, or `like` reads what an untrained model cannot.
    """
    path = model_path(name)
    # Of an adapter without an embedding the loader says what is missing.
    if has_embedding(path) or (Path(path) / "adapter_config.json").is_file():
        return EmbeddingModel(load_encoder(path, load_in_4bit=load_in_4bit), batch_size)
    if not _is_vision_language_model(path):
        return DualEncoder(path, batch_size=batch_size)
    model, processor = load_model(path, load_in_4bit=load_in_4bit)
    return EmbeddingModel(TrainedEncoder.zero_shot(model, processor, **_read_like(like)), batch_size)


def _is_vision_language_model(name: str) -> bool:
    try:
        family_of(AutoConfig.from_pretrained(name))
    except (OSError, ValueError):  # no config at all is for the dual encoder to say
        return False
    return True


def _read_like(folder: str | os.PathLike[str] | None) -> dict[str, Any]:
    """The options of `Encoder.zero_shot` by which a model is read as a trained one is."""
    if folder is None or not has_embedding(Path(folder)):
        return {}
    features = load_embedding(folder).embedding.features
    image, text = features["image"], features["text"]
    if image.prompt is None or text.prompt is None or "tokens" in (image.pooling, text.pooling):
        raise ValueError(
            f"{os.fspath(folder)} is read by a head or without instructions, which a model that was not trained so "
            "cannot be: leave that model out"
        )
    return {
        "image_prompt": image.prompt,
        "text_prompt": text.prompt,
        "layer": image.layer,
        "pooling": image.pooling,
    }


def _finite(vectors: Any) -> Vectors:
    if not np.isfinite(vectors).all():
        raise ValueError("the model gives embeddings that are not finite; try float32")
    return np.asarray(vectors, dtype=np.float32)
