"""Any CLIP- or SigLIP-like model as a judge of images and texts: embeddings, similarities, rows of scores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

import mllm_align.models  # noqa: F401  # AutoModel then knows the integrated stages of a tuned tower
from mllm_align_eval.items import Item, Picture
from mllm_align_eval.matrices import IMAGE_TO_TEXT, NUM_SCORES, TEXT_TO_IMAGE, rows_of

Vectors = np.ndarray[Any, np.dtype[np.float32]]


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
            raise ValueError(f"cannot load {name} with its processor: {error}") from error
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
        return self.images(pictures) @ self.texts(texts).T

    def __call__(self, items: Sequence[Item]) -> dict[str, Sequence[float]]:
        """By item id its scores: of its captions for its image, or of all candidates of a retrieval query.

        Each image and each text is embedded once.

        Raises:
            ValueError: If an item is not to be answered by scores of captions, or of the other side.
        """
        check_scored_by_rows(items)
        queries = [item for item in items if not item.is_closed]
        return self._captions([item for item in items if item.is_closed]) | self._queries(queries)

    def _captions(self, items: Sequence[Item]) -> dict[str, Sequence[float]]:
        if not items:
            return {}
        shown: dict[tuple[Any, ...], Picture] = {}
        for item in items:
            shown.setdefault(_key(item), item.pictures[0])
        written = list(dict.fromkeys(choice for item in items for choice in item.choices))
        images, texts = self.images(list(shown.values())), self.texts(written)
        row, column = _places(shown), _places(written)
        return {
            item.id: tuple((texts[[column[choice] for choice in item.choices]] @ images[row[_key(item)]]).tolist())
            for item in items
        }

    def _queries(self, items: Sequence[Item]) -> dict[str, Sequence[float]]:
        if not items:
            return {}
        images = [item for item in items if item.split == IMAGE_TO_TEXT]
        texts = [item for item in items if item.split == TEXT_TO_IMAGE]
        matrix = self.similarities([item.pictures[0] for item in images], [item.prompt for item in texts])
        if any(item.truth[NUM_SCORES] != len(texts) for item in images):
            raise ValueError("retrieval needs the queries of all images and all texts; some are missing")
        return rows_of(images, matrix) | rows_of(texts, matrix.T)

    def _image_batch(self, pictures: Sequence[Picture | Image.Image]) -> Any:
        inputs = self._processor(images=[_loaded(picture) for picture in pictures], return_tensors="pt")
        return self._model.get_image_features(**self._placed(inputs))

    def _text_batch(self, texts: Sequence[str]) -> Any:
        length = self._text_length()
        inputs = self._processor(
            text=list(texts),
            padding="max_length" if length else True,
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        return self._model.get_text_features(**self._placed(inputs))

    def _text_length(self) -> int | None:
        """Tokens that the text side takes; None where neither model nor tokenizer says."""
        config = getattr(self._model.config, "text_config", self._model.config)
        said = (getattr(config, "max_position_embeddings", None), self._processor.tokenizer.model_max_length)
        # A tokenizer without a limit names an astronomic one.
        return min((length for length in said if length is not None and length < 100_000), default=None)

    def _placed(self, inputs: Any) -> dict[str, Any]:
        placed = {key: value.to(self.device) for key, value in inputs.items()}
        return {key: value.to(self.dtype) if value.is_floating_point() else value for key, value in placed.items()}

    @torch.inference_mode()
    def _embedded(self, values: Sequence[Any], encode: Callable[[Sequence[Any]], Any]) -> Vectors:
        parts = [_unit(encode(batch)) for batch in _batches(values, self.batch_size)]
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def check_scored_by_rows(items: Sequence[Item]) -> None:
    """Raises ValueError, naming the first item that is answered by a text and not by a row of scores."""
    odd = next((item for item in items if NUM_SCORES not in item.truth), None)
    if odd is not None:
        raise ValueError(f"{odd.id!r} is no question that a dual encoder can answer: it needs no row of scores")


def _batches(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _loaded(picture: Picture | Image.Image) -> Image.Image:
    # An image has a `load` as well, which gives something else.
    return (picture if isinstance(picture, Image.Image) else picture.load()).convert("RGB")


def _unit(output: Any) -> Vectors:
    """Vectors of length 1; ValueError where the model gives nothing finite."""
    features = (output if isinstance(output, torch.Tensor) else output.pooler_output).float()
    if not torch.isfinite(features).all():
        raise ValueError("the model gives embeddings that are not finite; try float32")
    return torch.nn.functional.normalize(features, dim=-1).cpu().numpy()


def _key(item: Item) -> tuple[Any, ...]:
    """What tells the images of items apart: their name, and the part that is shown."""
    return (item.pictures[0].name, *item.truth.get("crop", ()))


def _places(values: Any) -> dict[Any, int]:
    return {value: index for index, value in enumerate(values)}
