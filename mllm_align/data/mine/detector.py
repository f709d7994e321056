"""Any open-vocabulary detector of transformers as one function: an image and phrases to scored boxes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

from mllm_align.data.errors import DataError
from mllm_align.data.processes import processes

# These answer several phrases from one look at the image; the others mix the phrases they are given up.
SEVERAL = ("owlvit", "owlv2")
PROBE = Image.new("RGB", (64, 48), "white")


class Detection(NamedTuple):
    """What was found: its score, and left, top, right and bottom as shares of the image."""

    phrase: str
    score: float
    box: tuple[float, float, float, float]


class Detector:
    """OWL-ViT, OWLv2, Grounding DINO, or another.

    Args:
        model: Name on the Hub, or folder.
        device: Where it runs; by default the process's own of `accelerate`.

    Attributes:
        identity: Tells it apart from every other that would find others.

    Raises:
        DataError: If there is no such model, or it detects nothing by phrase.
    """

    def __init__(self, model: str | os.PathLike[str], device: Any = None) -> None:
        name = os.fspath(model)
        self.device = torch.device(device) if device is not None else processes().device
        try:
            config: Any = AutoConfig.from_pretrained(name)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{name} is neither a model's folder nor a model on the Hub in reach: {reason}") from None
        try:
            self._processor: Any = AutoProcessor.from_pretrained(name)
            self._model: Any = AutoModelForZeroShotObjectDetection.from_pretrained(name, dtype=torch.float32)
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{name} is a {config.model_type}, which finds no things by their names ({reason}): name a detector "
                "such as google/owlv2-base-patch16-ensemble or IDEA-Research/grounding-dino-base"
            ) from None
        self._model.to(self.device).eval()
        self._several = config.model_type in SEVERAL
        self._longest = _longest_text(config, self._processor.tokenizer)
        self.identity = f"{os.path.basename(os.path.normpath(name)) if os.path.isdir(name) else name} {self._digest()}"
        self(PROBE, ["a thing"])

    def fits(self, phrase: str) -> bool:
        """Whether a phrase is no longer than the text model reads, the tokens at its ends included."""
        text = phrase if self._several else _sentence(phrase)
        return len(self._processor.tokenizer(text, verbose=False)["input_ids"]) <= self._longest

    @torch.inference_mode()
    def __call__(self, image: Image.Image, phrases: Sequence[str], threshold: float = 0.0) -> list[Detection]:
        """What is found of some phrases on an upright RGB image, best first.

        Args:
            image: The image.
            phrases: At least one, each of which `fits`.
            threshold: Scores must be above it.
        """
        asked = [list(phrases)] if self._several else [[phrase] for phrase in phrases]
        found = [each for group in asked for each in self._look(image, group, threshold)]
        return sorted(found, key=lambda each: -each.score)

    def _look(self, image: Image.Image, phrases: list[str], threshold: float) -> list[Detection]:
        given = [phrases] if self._several else _sentence(phrases[0])
        inputs = self._processor(text=given, images=image, return_tensors="pt").to(self.device)
        more = {} if self._several else {"input_ids": inputs["input_ids"], "text_threshold": 0.0}
        result = self._processor.post_process_grounded_object_detection(
            self._model(**inputs), threshold=threshold, target_sizes=[(image.height, image.width)], **more
        )[0]
        # Of several phrases a label says which; of one there is nothing to say.
        labels = result["labels"].tolist() if self._several else [0] * len(result["scores"])
        # In pixels, for OWLv2 pads an image to a square and only so takes that back.
        sides = torch.tensor([image.width, image.height] * 2, device=result["boxes"].device)
        boxes = (result["boxes"] / sides).clamp(0, 1).tolist()
        return [
            Detection(phrases[label], score, (box[0], box[1], box[2], box[3]))
            for label, score, box in zip(labels, result["scores"].tolist(), boxes, strict=True)
        ]

    def _digest(self) -> str:
        digest = hashlib.blake2b(digest_size=8)
        for key, value in sorted(self._model.state_dict().items()):
            digest.update(f"{key} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def _sentence(phrase: str) -> str:
    return f"{phrase.lower().rstrip('.')}."


def _longest_text(config: Any, tokenizer: Any) -> int:
    """Tokens of a text at the most, those at its ends included."""
    told = (
        getattr(config, "max_text_len", None),  # what Grounding DINO attends to; its text model could read more
        getattr(getattr(config, "text_config", None), "max_position_embeddings", None),
        tokenizer.model_max_length,  # that far OWL-ViT's processor pads
    )
    return min(length for length in told if length is not None)
