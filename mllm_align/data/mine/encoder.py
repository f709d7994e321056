"""Any vision model of transformers as one function, from images to vectors of length 1."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.utils import logging as speaks

from mllm_align.data.errors import DataError
from mllm_align.data.processes import processes

POOLINGS = ("auto", "cls", "mean")
# Two that no processor brings to one shape by itself, and that a processor with tiles cuts in several.
_PROBES = (Image.new("RGB", (64, 96), (99, 120, 80)), Image.new("RGB", (112, 64), (30, 60, 200)))

Inputs = Mapping[str, torch.Tensor]


class ImageEmbedder:
    """CLIP, SigLIP, DINOv2, any other vision model, or the image side of an LVLM.

    Args:
        model: Name on the Hub, or folder.
        device: Where it runs; by default the process's own of `accelerate`.
        dtype: Of its weights, such as "bfloat16"; float32 by default.
        batch_size: Images of a forward pass.
        pooling: "auto" is the vector that the model itself gives for an image (CLIP and SigLIP: that which is compared
            with texts; DINOv2: its normalised class token), and for an LVLM the mean of the image's tokens as its
            language model reads them. "cls" and "mean" are the first token and the mean of all tokens of the vision
            model's last layer.

    Attributes:
        identity: Tells it apart from every other that gives other vectors: name, weights, processor, pooling, dtype.
        dim: Length of a vector.

    Raises:
        DataError: If there is no such model, it has no image side, or its checkpoint lacks weights of it.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        batch_size: int = 32,
        pooling: str = "auto",
    ) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.batch_size, self.pooling = batch_size, pooling
        self.device = torch.device(device) if device is not None else processes().device
        self.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32
        name = os.fspath(model)
        self._processor = _processor_of(name)
        self._model, self._encode = _image_side(name, self.dtype, pooling)
        self._model.to(self.device).eval()
        takes = inspect.signature(self._encode).parameters
        self._takes = {key for key, parameter in takes.items() if parameter.kind is not parameter.VAR_KEYWORD}
        self._together = self._gives_one_each(_PROBES)
        self.dim = self.vectors(self.prepare(_PROBES[:1])).shape[1]
        short = os.path.basename(os.path.normpath(name)) if os.path.isdir(name) else name
        dtype_name = str(self.dtype).removeprefix("torch.")
        self.identity = f"{short} {self._fingerprint()} {pooling} {dtype_name}"

    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        """(N, d) float32, every row of length 1; a row of NaN where the model gives nothing finite."""
        parts = [images[start : start + self.batch_size] for start in range(0, len(images), self.batch_size)]
        found = [self.vectors(self.prepare(part)) for part in parts]
        return np.concatenate(found) if found else np.empty((0, self.dim), np.float32)

    def prepare(self, images: Sequence[Image.Image]) -> list[Inputs]:
        """What the model reads of some images: the part of the work that threads may do ahead."""
        groups = [list(images)] if self._together else [[image] for image in images]
        read = [self._processor(images=group, return_tensors="pt") for group in groups if group]
        return [{key: value for key, value in inputs.items() if key in self._takes} for inputs in read]

    @torch.inference_mode()
    def vectors(self, prepared: Sequence[Inputs]) -> np.ndarray:
        """The vectors of what `prepare` made, in the order of the images."""
        found = [self._pooled(inputs) for inputs in prepared]
        if not self._together:
            found = [_mean_of(values)[None] for values in found]
        stacked = torch.cat([_stacked(values) for values in found]).double().cpu().numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            unit = stacked / np.linalg.norm(stacked, axis=1, keepdims=True)
        unit[~np.isfinite(unit).all(1)] = np.nan
        return unit.astype(np.float32)

    def _pooled(self, inputs: Inputs) -> Any:
        """One vector, or a table of tokens, for each image (or tile) of one forward pass."""
        placed = {key: value.to(self.device) for key, value in inputs.items()}
        placed = {key: value.to(self.dtype) if value.is_floating_point() else value for key, value in placed.items()}
        output = self._encode(**placed)
        tokens = output.last_hidden_state
        if self.pooling == "mean":
            return tokens.mean(1)
        given = output.get("pooler_output")
        return tokens[:, 0] if self.pooling == "cls" or given is None else given

    @torch.inference_mode()
    def _gives_one_each(self, images: Sequence[Image.Image]) -> bool:
        """Whether a forward pass of several images gives as many results; else each has one of its own."""
        self._together = True
        try:
            return len(self._pooled(self.prepare(images)[0])) == len(images)
        except ValueError:  # the processor cannot stack them
            return False

    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=8)
        settings = {"class": type(self._processor).__name__, **self._processor.to_dict()}
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        for key, value in sorted(self._model.state_dict().items()):
            digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def _processor_of(name: str) -> Any:
    try:
        AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{name} is neither a model's folder nor a model on the Hub in reach: {str(error).splitlines()[0]}"
        ) from None
    try:
        return AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{name} has no image processor, so no image side that could embed: {error}") from None


def _image_side(name: str, dtype: torch.dtype, pooling: str) -> tuple[Any, Any]:
    """The model without what only reads text, and what is called with pixels."""
    with _errors_alone():  # what the checkpoint lacks is judged below
        model, report = AutoModel.from_pretrained(name, dtype=dtype, output_loading_info=True)
    if hasattr(model, "get_image_features"):
        model.set_decoder(torch.nn.Identity())
        encode = model.get_image_features
    elif "pixel_values" in inspect.signature(model.forward).parameters:
        encode = model.forward
    else:
        raise DataError(f"{name} is a {type(model).__name__}, which has no image side that could embed")
    used = model.state_dict()
    missing = [key for key in report["missing_keys"] if key in used and (pooling == "auto" or "pooler" not in key)]
    if missing:
        mend = "; pooling 'cls' or 'mean' does without" if all("pooler" in key for key in missing) else ""
        raise DataError(f"the checkpoint {name} lacks weights of the image side, such as {missing[0]}{mend}")
    return model, encode


def _stacked(values: Any) -> torch.Tensor:
    """(N, d) of N vectors, of (N, d, 1, 1), or of N tables of tokens."""
    if isinstance(values, torch.Tensor) and (values.ndim == 2 or values.shape[2:].numel() == 1):
        return values.flatten(1)
    return torch.stack([_mean_of(tokens) for tokens in values])


def _mean_of(values: Any) -> torch.Tensor:
    """The mean (d,) of all tokens of one image, whatever they are packed in."""
    if isinstance(values, torch.Tensor):
        return values.reshape(-1, values.shape[-1]).float().mean(0)
    return torch.cat([tokens.reshape(-1, tokens.shape[-1]) for tokens in values]).float().mean(0)


@contextmanager
def _errors_alone() -> Iterator[None]:
    before, bars = speaks.get_verbosity(), speaks.is_progress_bar_enabled()
    speaks.set_verbosity(logging.ERROR)
    speaks.disable_progress_bar()
    try:
        yield
    finally:
        speaks.set_verbosity(before)
        if bars:
            speaks.enable_progress_bar()
