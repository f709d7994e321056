"""What teachers of all kinds share: how images are shown to them, which states are taken, when they are quiet."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor
from transformers.utils import logging as speaks

from mllm_align.contract import Teacher
from mllm_align.vision.regions import Located

# To be raised when other numbers come out for the same model: what is cached belongs to one version.
VERSION = 1
# Models that normalise pixels themselves.
SELF_NORMALISING = ("radio",)


class Described(Located, Protocol):
    """Where an object is, and what it says."""

    @property
    def text(self) -> str:
        """The words that are there, or ""."""
        ...


class Pixels:
    """Images as a teacher is shown them: whole, as one square, by its own normalisation.

    What a processor cuts off at the sides would be lost to the objects there, so the whole image is squeezed.
    """

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float], resample: int) -> None:
        self.size = size
        self.mean, self.std, self.resample = tuple(mean), tuple(std), resample

    @classmethod
    def of(cls, teacher: Teacher, config: Any, where: str) -> Pixels:
        """By the model's image processor; RADIO, which normalises by itself, may have none and is shown 0 to 1.

        Raises:
            ValueError: If nothing says how its images are normalised, or how large they are.
        """
        processor: Any = None
        try:
            with quiet():
                processor = AutoImageProcessor.from_pretrained(teacher.model, revision=teacher.revision)
        except (OSError, ValueError, ImportError) as error:
            if config.model_type not in SELF_NORMALISING:
                raise ValueError(f"{where} has no image processor that can be loaded: {first_line(error)}") from None
        size = teacher.size or _own_size(processor, getattr(config, "vision_config", config))
        if size is None:
            raise ValueError(f"{where}: nothing says how large its images are: give the teacher a size")
        normalises = processor is not None and getattr(processor, "do_normalize", True)
        mean = getattr(processor, "image_mean", None) if normalises else None
        std = getattr(processor, "image_std", None) if normalises else None
        resample = getattr(processor, "resample", None)
        return cls(
            size,
            mean or (0.0,) * 3,
            std or (1.0,) * 3,
            int(Image.Resampling.BICUBIC if resample is None else resample),
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the numbers."""
        return {"size": self.size, "mean": self.mean, "std": self.std, "resample": self.resample}

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """(N, 3, size, size) float32."""
        filtered = Image.Resampling(self.resample)
        squares = [np.asarray(image.convert("RGB").resize((self.size, self.size), filtered)) for image in images]
        values = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255
        return (values - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.std).view(3, 1, 1)


def states_of(output: Any, teacher: Teacher) -> Tensor:
    """The states that are taken: the output's, or those of the layer.

    Raises:
        ValueError: If there is no such layer.
    """
    if teacher.layer is None:
        states = output.get("last_hidden_state")
        return states if states is not None else output["features"]
    layers = output.get("hidden_states")
    if layers is None or not -len(layers) <= teacher.layer < len(layers):
        there = "no layers to choose from" if layers is None else f"the layers 0 to {len(layers) - 1}"
        raise ValueError(f"layer {teacher.layer} is not there; the model has {there}")
    return layers[teacher.layer]


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing but errors of `transformers`, and no bars."""
    before, bars = speaks.get_verbosity(), speaks.is_progress_bar_enabled()
    speaks.set_verbosity(logging.ERROR)
    speaks.disable_progress_bar()
    try:
        yield
    finally:
        speaks.set_verbosity(before)
        if bars:
            speaks.enable_progress_bar()


def _own_size(processor: Any, config: Any) -> int | None:
    """The side that the processor cuts or resizes to, else the one in the configuration."""
    names = ("crop_size", "size") if getattr(processor, "do_center_crop", False) else ("size",)
    for size in (getattr(processor, name, None) for name in names):
        for side in ("height", "shortest_edge"):
            found = size.get(side) if isinstance(size, Mapping) else getattr(size, side, None)
            if found:
                return int(found)
    found = getattr(config, "image_size", None)
    return int(max(found)) if isinstance(found, list | tuple) else found


def first_line(error: BaseException) -> str:
    """Of what an error says, or its kind."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
