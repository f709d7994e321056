"""Frozen encoders of `transformers` as teachers: any vision or document model, loaded and checked."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from mllm_align.contract import Teacher
from mllm_align.vision.document_teacher import DocumentTeacher
from mllm_align.vision.teacher_parts import Described, Pixels, first_line, quiet
from mllm_align.vision.vision_teacher import VisionTeacher

DOCUMENT_MODELS = ("layoutlmv3",)


class LoadedTeacher(Protocol):
    """A teacher that is in memory."""

    model: nn.Module
    width: int

    @property
    def facts(self) -> Mapping[str, Any]:
        """What, beside the weights, decides its numbers."""
        ...

    def __call__(
        self, images: Sequence[Image.Image], objects: Sequence[Sequence[Described]], pooling: str
    ) -> list[Tensor]:
        """Per image, on the host in float32: (objects on it, width) for "regions", (1, width) for "mean"."""
        ...


def load_teacher(teacher: Teacher, device: Any = None) -> LoadedTeacher:
    """Loads a teacher, in float32.

    Args:
        teacher: Which one.
        device: Where it runs; the CPU by default.

    Raises:
        ValueError: If there is no such model, it is of another kind, has no such layer, lacks weights, or cannot see
            images of this size.
    """
    where = f"teacher {str(teacher)!r}"
    try:
        config: Any = AutoConfig.from_pretrained(teacher.model, revision=teacher.revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{where} is neither a model's folder nor a model on the Hub in reach: {first_line(error)}"
        ) from None
    reads_words = config.model_type in DOCUMENT_MODELS
    if teacher.kind == "document" and not reads_words:
        raise ValueError(
            f"{where} is a {config.model_type}, which reads no words on a page; kind 'document' is for "
            f"{', '.join(DOCUMENT_MODELS)}: leave kind out, or name one of these"
        )
    if teacher.kind == "vision" and reads_words:
        raise ValueError(f"{where} is a {config.model_type}, which reads words too: leave kind out")
    kind = DocumentTeacher if reads_words else VisionTeacher
    made = kind(teacher, load_body(teacher, where), Pixels.of(teacher, config, where))
    made.model.to(device or "cpu").eval().requires_grad_(False)
    _probe(made, where)
    return made


def load_body(teacher: Teacher, where: str) -> Any:
    """The module that sees: of a model with a text side (CLIP, SigLIP) the image side alone.

    Raises:
        ValueError: If it cannot be loaded, sees no images, or its checkpoint lacks weights.
    """
    try:
        with quiet():
            model, report = AutoModel.from_pretrained(
                teacher.model, revision=teacher.revision, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"{where} cannot be loaded: {first_line(error)}") from None
    body: Any = getattr(model, "vision_model", model)
    takes = inspect.signature(body.forward).parameters
    if "pixel_values" not in takes:
        raise ValueError(f"{where} is a {type(model).__name__}, which sees no images")
    prefix = "vision_model." if body is not model else ""
    own = {prefix + name for name in body.state_dict()}
    missing = [name for name in report["missing_keys"] if name in own and "pooler" not in name]
    if missing:
        raise ValueError(f"{where}: its checkpoint lacks weights such as {missing[0]}")
    return body


def _probe(made: LoadedTeacher, where: str) -> None:
    """What would fail at the first page fails here."""
    try:
        found = made([Image.new("RGB", (48, 32), "white")], [()], "mean")[0]
    except (ValueError, RuntimeError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{where} cannot be used: {first_line(error)}") from error
    made.width = found.shape[1]
