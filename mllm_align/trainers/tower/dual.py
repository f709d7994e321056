"""A dual encoder taken apart: its texts are embedded once and for all, its image side is what trains."""

from __future__ import annotations

import inspect
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, AutoProcessor

logger = logging.getLogger(__name__)

NEEDED = ("get_image_features", "get_text_features", "vision_model", "text_model", "logit_scale")
TEXT_SIDE = ("text_model", "text_projection")
MAX_LOG_SCALE = math.log(100.0)  # as CLIP keeps it, unless it starts higher


@dataclass(frozen=True)
class ImageReader:
    """Pictures as an image tower reads them.

    Attributes:
        processor: An image processor.
        takes: Names of what the tower takes of its results.
    """

    processor: Any
    takes: frozenset[str]

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """The tensors of some images, joined on the leading axis."""
        read = [self.processor(images=[image], return_tensors="pt") for image in images]
        return {key: torch.cat([each[key] for each in read]) for key in read[0] if key in self.takes}


@dataclass
class Dual:
    """A CLIP- or SigLIP-like model in float32 with its processor.

    Attributes:
        model: In evaluation mode.
        processor: Its image processor and tokenizer.
        dtype: Of the weights as they are stored.
        name: Where it came from.
    """

    model: Any
    processor: Any
    dtype: torch.dtype
    name: str

    def drop_texts(self) -> Any:
        """The model without what reads texts, whose memory is then free."""
        for part in TEXT_SIDE:
            if hasattr(self.model, part):
                setattr(self.model, part, None)
        return self.model

    def reader(self) -> ImageReader:
        """What reads images for the image side; small, so that workers can have it."""
        takes = inspect.signature(self.model.get_image_features).parameters
        return ImageReader(self.processor.image_processor, frozenset(takes))

    @torch.inference_mode()
    def text_vectors(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        """(N, d) float32 unit vectors of texts, padded and cut to the length that the text side takes."""
        length = self._text_length()
        found = []
        for start in range(0, len(texts), batch_size):
            read = self.processor.tokenizer(
                list(texts[start : start + batch_size]),
                padding="max_length" if length else True,
                truncation=length is not None,
                max_length=length,
                return_tensors="pt",
            ).to(self.model.device)
            takes = inspect.signature(self.model.get_text_features).parameters
            output = self.model.get_text_features(**{key: value for key, value in read.items() if key in takes})
            found.append(unit(output).cpu().numpy())
        return np.concatenate(found)

    def warn_of_long(self, texts: Sequence[str]) -> None:
        """Says how many texts are longer than the text side reads."""
        length = self._text_length()
        if length is None:
            return
        sizes = [len(ids) for ids in self.processor.tokenizer(list(texts))["input_ids"]]
        long = sum(size > length for size in sizes)
        if long:
            logger.warning(
                "%d of %d captions are longer than the %d tokens that the text tower reads, and are cut",
                *(long, len(texts), length),
            )

    def _text_length(self) -> int | None:
        config = getattr(self.model.config, "text_config", self.model.config)
        said = (getattr(config, "max_position_embeddings", None), self.processor.tokenizer.model_max_length)
        # A tokenizer without a limit names an astronomic one.
        return min((length for length in said if length is not None and length < 100_000), default=None)


def load_dual(name: str | os.PathLike[str], device: Any = "cpu") -> Dual:
    """A dual encoder from the Hub or a folder.

    Raises:
        ValueError: If it cannot be loaded, or has no text tower, image tower, temperature or tokenizer.
    """
    where = os.fspath(name)
    try:
        model: Any = AutoModel.from_pretrained(where, dtype="auto")
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load {where}: {str(error).splitlines()[0]}") from error
    lacking = [part for part in NEEDED if not hasattr(model, part)]
    if lacking:
        raise ValueError(
            f"{where} is a {type(model).__name__} without {lacking[0]}: a tower is tuned beside a text tower, so name "
            "a whole CLIP- or SigLIP-like model, not its image side"
        )
    try:
        processor: Any = AutoProcessor.from_pretrained(where)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load the processor of {where}: {str(error).splitlines()[0]}") from error
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise ValueError(f"{where} has a {type(processor).__name__}, which does not read both images and texts")
    stored = model.dtype
    return Dual(model.float().to(device).eval(), processor, stored, where)


class ImageSide(nn.Module):
    """What trains in a stage: the image tower with its projection, and the temperature.

    Args:
        model: A dual encoder; its text side is taken away.
        peft_config: LoRA on the tower's linear layers in place of all its weights; where it names no targets, all
            linear layers of the image side get it but those inside `nn.MultiheadAttention`, which PEFT does not see.
    """

    accepts_loss_kwargs = False  # else the trainer would not divide by the accumulated batches

    def __init__(self, model: Any, peft_config: LoraConfig | None = None) -> None:
        super().__init__()
        self.max_log_scale = max(MAX_LOG_SCALE, model.logit_scale.item())
        self.model: Any = model.requires_grad_(True)
        if peft_config is not None:
            if peft_config.target_modules is None:
                peft_config.target_modules = linear_layers(model)
            self.model = get_peft_model(model, peft_config)
        for name in ("logit_scale", "logit_bias"):
            if (parameter := getattr(self.dual, name, None)) is not None:
                parameter.requires_grad_(True)

    @property
    def dual(self) -> Any:
        """The dual encoder below its adapters."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def config(self) -> Any:
        """The dual encoder's."""
        return self.dual.config

    def forward(self, **inputs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(B, d) float32 unit vectors, one over the temperature, and the bias where there is one."""
        with torch.no_grad():
            self.dual.logit_scale.clamp_(max=self.max_log_scale)
        vectors = unit(self.dual.get_image_features(**inputs))
        bias = getattr(self.dual, "logit_bias", None)
        # Never the parameters themselves: what DDP hands back must be on the graph.
        return vectors, self.dual.logit_scale.float().exp().squeeze(), None if bias is None else bias.float().squeeze()

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """As the trainer asks for it."""
        self.dual.gradient_checkpointing_enable(gradient_checkpointing_kwargs=gradient_checkpointing_kwargs)

    def merged(self) -> Any:
        """The dual encoder with what was learned in its own weights; the adapters are gone."""
        if isinstance(self.model, PeftModel):
            self.model = self.model.merge_and_unload()
        return self.model


def linear_layers(model: Any) -> list[str]:
    """Full names of the linear layers of a dual encoder's image side.

    Raises:
        ValueError: If it has none.
    """
    hidden = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.split(".")[0] not in TEXT_SIDE
        and not any(name.startswith(f"{each}.") for each in hidden)
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} has no linear layers on its image side: train it whole")
    return found


def unit(output: Any) -> Tensor:
    """(B, d) float32 vectors of length 1 of what `get_image_features` or `get_text_features` gives."""
    vectors = output if isinstance(output, Tensor) else output.pooler_output
    return functional.normalize(vectors.float(), dim=-1)
