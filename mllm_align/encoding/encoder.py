"""A vision-language model as an encoder: images, texts or whole prompts to vectors, measured as in training."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mllm_align.contract import Batch, Embedding, Feature, Needs, Signals
from mllm_align.contract.embedding import IMAGE_PROMPT, TEXT_PROMPT
from mllm_align.data.collator import AlignCollator
from mllm_align.data.schema import parse_row
from mllm_align.encoding.loading import load_parts
from mllm_align.encoding.reading import Reading, images_to_read, rows_to_read, texts_to_read
from mllm_align.encoding.vectors import entry_vectors, evaluating, vector_width
from mllm_align.families import family_of, unwrap
from mllm_align.models import soft_prompts_of
from mllm_align.signals import EngineOptions, measure
from mllm_align.signals.features import check_features


class Encoded(NamedTuple):
    """Vectors of images (N, d) and of texts (M, d)."""

    images: Any
    texts: Any


class Encoder:
    """Makes vectors of images and texts, which are compared by their cosine.

    They go through the collator and the engine that training uses, so that a vector is the one that was trained: bit
    for bit where the same entries are read in one pass, else but for the last bits. Texts are read in passes of their
    own, without any image. The model stays generative: `encoder.model.generate` is what it always was.

    Args:
        model: A vision-language model, or its PEFT wrapper.
        processor: Its processor.
        embedding: What is measured of an image and of a text, and the heads that follow.
        min_pixels: Least number of pixels of an image, where the image processor has the option.
        max_pixels: Largest, likewise.
        options: Of the engine.

    Attributes:
        model: As given.
        processor: As given.
        embedding: As given, its heads on the model's device.

    Example:
        >>> from mllm_align.encoding import load_encoder
        >>> encoder = load_encoder("runs/encoder")  # doctest: +SKIP
        >>> images, texts = encoder.encode(["a.jpg", "b.jpg"], ["a dog", "two cats"])  # doctest: +SKIP
        >>> images @ texts.T  # (2, 2) cosines  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        embedding: Embedding,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        options: EngineOptions | None = None,
    ) -> None:
        self.model, self.processor, self.embedding = model, processor, embedding
        self.min_pixels, self.max_pixels = min_pixels, max_pixels
        self.options = options or EngineOptions()
        for head in embedding.heads.values():
            head.to(unwrap(model).device)

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], base: str | os.PathLike[str] | None = None, **overrides: Any
    ) -> Encoder:
        """The encoder that was trained, from a run's folder, a checkpoint, an export, or the Hub.

        Args:
            folder: An adapter, or a whole model, with `embedding.json` beside it.
            base: The base of an adapter, if not the one that it names.
            **overrides: Of `load_model`, such as `device="cuda:1"` or `load_in_4bit=True`.

        Raises:
            ValueError: If no embedding is there, or the model cannot be loaded.
        """
        kept, model, processor = load_parts(folder, base, **overrides)
        return cls(model, processor, kept.embedding, min_pixels=kept.min_pixels, max_pixels=kept.max_pixels)

    @classmethod
    def zero_shot(
        cls,
        model: Any,
        processor: Any,
        *,
        image_prompt: str = IMAGE_PROMPT,
        text_prompt: str = TEXT_PROMPT,
        layer: int | float | None = None,
        pooling: str = "last",
    ) -> Encoder:
        """A model that was not trained for it, read behind instructions, as E5-V does (Jiang et al., 2024),
        https://arxiv.org/abs/2407.12580: what training starts from, and has to improve on.

        Args:
            model: Any vision-language model.
            processor: Its processor.
            image_prompt: Behind the image.
            text_prompt: Behind the text.
            layer: As `Feature.layer`.
            pooling: "last" or "mean".

        Raises:
            ValueError: If there is no such pooling or layer.
        """
        if pooling not in ("last", "mean"):
            raise ValueError(f"pooling must be 'last' or 'mean' without a trained head, got {pooling!r}")
        image = Feature("image", "embedding", "image", layer, pooling, prompt=image_prompt)
        text = Feature("text", "embedding", "caption", layer, pooling, prompt=text_prompt)
        check_features((image, text))
        return cls(model, processor, Embedding({"image": image, "text": text}, {}))

    def encode(
        self,
        images: Any = None,
        texts: Any = None,
        rows: Any = None,
        *,
        side: str | None = None,
        batch_size: int = 32,
        dimensions: int | None = None,
        normalize: bool = True,
        convert_to_numpy: bool = True,
        progress: bool = False,
    ) -> Any:
        """The vectors of images, of texts, of both, or of whole rows.

        Args:
            images: List of N images as `data.images.load_image` reads them (paths, PIL, bytes, arrays), or of lists of
                images that belong together.
            texts: List of M texts.
            rows: Instead, list of N canonical rows (`data.schema`), each read whole: its own prompt, images in their
                places, and nothing added.
            side: Of rows, "image" or "text": what training read as that side, in its own column of the rows.
            batch_size: Entries of one pass at the most.
            dimensions: Leading numbers of a vector that are kept, of unit length again (Matryoshka); None for all.
            normalize: Whether vectors are made to be of unit length.
            convert_to_numpy: True for numpy arrays, False for tensors on the CPU.
            progress: Whether to show how far it is.

        Returns:
            (N, d) float32; of images and texts `Encoded(images, texts)`.

        Raises:
            ValueError: If nothing is given or too much, an entry is empty or cannot be read, or the vectors do not
                have that many dimensions.
        """
        if (rows is None) == (images is None and texts is None):
            raise ValueError("give images, texts, or both; or rows and nothing else")
        if side is not None and rows is None:
            raise ValueError("side belongs to rows: leave it out")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number above 0, got {batch_size!r}")
        readings = []
        if rows is not None:
            readings.append(rows_to_read(self.embedding, rows, side))
        if images is not None:
            readings.append(images_to_read(self.embedding, images))
        if texts is not None:
            readings.append(texts_to_read(self.embedding, texts))
        for reading in readings:
            _check_dimensions(dimensions, self._width(reading.side))
        found = []
        for reading in readings:
            vectors = self._vectors(reading, batch_size, progress)[:, :dimensions]
            vectors = F.normalize(vectors, dim=1) if normalize else vectors
            found.append(vectors.numpy() if convert_to_numpy else vectors)
        return found[0] if len(found) == 1 else Encoded(*found)

    def similarity(
        self, images: Any, texts: Any, *, batch_size: int = 32, dimensions: int | None = None
    ) -> np.ndarray:
        """(N, M) float32 cosines of images and texts, each as `encode` takes them.

        Raises:
            ValueError: If one of both is missing, or as `encode`.
        """
        if images is None or texts is None:
            raise ValueError("similarity is of images and texts: give both, or compare what encode gives yourself")
        found = self.encode(images, texts, batch_size=batch_size, dimensions=dimensions)
        return found.images @ found.texts.T

    def collator(self, feature: Feature) -> AlignCollator:
        """What brings rows to a batch for one feature."""
        family, needs = family_of(self.model), Needs(features=(feature,))
        soft = soft_prompts_of(self.model)
        return AlignCollator(
            self.processor,
            lambda source: needs,
            family.image_keys,
            family.token_keys,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
            replace=None if soft is None else soft.replace,
        )

    def _vectors(self, reading: Reading, batch_size: int, progress: bool) -> Tensor:
        """(N, d) float32, on the CPU."""
        collator, device = self.collator(reading.feature), unwrap(self.model).device
        starts: Any = range(0, len(reading.rows), batch_size)
        if progress:
            from tqdm.auto import tqdm

            starts = tqdm(starts, desc="encode", unit="batch")
        found = []
        with torch.no_grad(), evaluating(self.model):
            for start in starts:
                places = range(start, min(start + batch_size, len(reading.rows)))
                batch = collator.collate([parse_row(reading.rows[place], place) for place in places])
                feature = reading.feature
                signals, _ = measure(
                    self.model, batch.to(device), features=(feature,), scored=(), options=self.options
                )
                _check_one_each(batch, signals, feature, start)
                _, vectors = entry_vectors(signals, feature, self.embedding.heads.get(reading.side))
                found.append(vectors.float().cpu())
        return torch.cat(found) if found else torch.zeros(0, self._width(reading.side))

    def _width(self, side: str) -> int:
        return vector_width(self.model, self.embedding.heads.get(side))


def load_encoder(
    folder: str | os.PathLike[str], base: str | os.PathLike[str] | None = None, **overrides: Any
) -> Encoder:
    """The trained encoder of a folder, or of the Hub; see `Encoder.from_pretrained`."""
    return Encoder.from_pretrained(folder, base, **overrides)


def _check_dimensions(dimensions: int | None, width: int) -> None:
    whole = isinstance(dimensions, int) and not isinstance(dimensions, bool)
    if dimensions is not None and not (whole and 1 <= dimensions <= width):
        raise ValueError(f"dimensions must be a whole number from 1 to {width}, got {dimensions!r}")


def _check_one_each(batch: Batch, signals: Signals, feature: Feature, start: int) -> None:
    """Every row has one entry, or tokens of one; several texts are refused before they are read.

    Raises:
        ValueError: Naming the first row that has none.
    """
    if feature.view is None:
        counts = np.bincount(signals.host_feature_rows.get(feature.name, ()), minlength=len(batch))
    else:
        counts = np.bincount([b.row for b in batch.branches if b.view == feature.view], minlength=len(batch))
    wrong = np.flatnonzero(counts == 0)
    if len(wrong):
        raise ValueError(
            f"row {start + wrong[0]} has nothing in column {feature.column!r}, of which a vector is to be made: give "
            "it an entry, or leave the row out"
        )
