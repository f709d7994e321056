"""Any CLIP- or SigLIP-like model as an encoder of images and texts: embeddings and similarities."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

import mllm_align.models  # noqa: F401  # AutoModel then knows the integrated stages of a tuned tower
from mllm_align.data.mine.dual_embedder import text_length
from mllm_align.models.loading import nowhere
from mllm_align_eval.items import Picture
from mllm_align_eval.similarity import Vectors, cosines, loaded


class DualEncoder:
    """A model that embeds images and texts in one space. Similarity is the cosine.

    A logit scale and bias, as the models have, change no ranking and are left out. Texts are padded to the full length
    that the model takes, as CLIP and SigLIP saw them in training, and cut to it.

    Args:
        model: Hub id or folder.
        device: Where it runs; a GPU if there is one by default.
        dtype: Of its weights; float32 by default.
        batch_size: Images or texts at a time.

    Raises:
        ValueError: If the model cannot be loaded, or has not both sides.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        batch_size: int = 64,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        name = os.fspath(model)
        try:
            self._processor: Any = AutoProcessor.from_pretrained(name)
            self._model: Any = AutoModel.from_pretrained(name, dtype=dtype)
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot load {name} with its processor{nowhere(name)}: {error}") from error
        lacking = [side for side in ("get_image_features", "get_text_features") if not hasattr(self._model, side)]
        if lacking or not hasattr(self._processor, "tokenizer"):
            raise ValueError(f"{name} is a {type(self._model).__name__}, which does not embed both images and texts")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype, self.batch_size = dtype, batch_size
        self._model.to(self.device).eval()

    def images(self, pictures: Sequence[Picture | Image.Image]) -> Vectors:
        """(N, d) float32 vectors of length 1 of some images; a `Picture` is loaded when it is its turn."""
        return self._embedded(pictures, self._image_batch)

    def texts(self, texts: Sequence[str]) -> Vectors:
        """(N, d) float32 vectors of length 1 of some texts."""
        return self._embedded(texts, self._text_batch)

    def similarities(self, pictures: Sequence[Picture | Image.Image], texts: Sequence[str]) -> Vectors:
        """(images, texts) float32 cosines: what `mllm_align_eval.matrices` reads from a .npy file."""
        return cosines(self.images(pictures), self.texts(texts))

    def _image_batch(self, pictures: Sequence[Picture | Image.Image]) -> Any:
        inputs = self._processor(images=[loaded(picture) for picture in pictures], return_tensors="pt")
        return self._model.get_image_features(**self._placed(inputs))

    def _text_batch(self, texts: Sequence[str]) -> Any:
        length = text_length(self._model.config, self._processor.tokenizer)
        inputs = self._processor(
            text=list(texts),
            padding="max_length" if length else True,
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        return self._model.get_text_features(**self._placed(inputs))

    def _placed(self, inputs: Any) -> dict[str, Any]:
        placed = {key: value.to(self.device) for key, value in inputs.items()}
        return {key: value.to(self.dtype) if value.is_floating_point() else value for key, value in placed.items()}

    @torch.inference_mode()
    def _embedded(self, values: Sequence[Any], encode: Callable[[Sequence[Any]], Any]) -> Vectors:
        parts = [_unit(encode(batch)) for batch in _batches(values, self.batch_size)]
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def _batches(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _unit(output: Any) -> Vectors:
    """Vectors of length 1; ValueError where the model gives nothing finite."""
    features = (output if isinstance(output, torch.Tensor) else output.pooler_output).float()
    if not torch.isfinite(features).all():
        raise ValueError("the model gives embeddings that are not finite; try float32")
    return torch.nn.functional.normalize(features, dim=-1).cpu().numpy()
