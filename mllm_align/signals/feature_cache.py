"""LLM-ready image tokens on disk: a frozen vision tower runs once per image, not once per step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mllm_align.contract import Batch
from mllm_align.families import EncodedImages, Family, family_of, unwrap
from mllm_align.families.base import to_device
from mllm_align.signals.store import TensorStore
from mllm_align.signals.vision import features_are_shared, trained_image_parameters


class FeatureCache:
    """What a model's frozen vision side made of images, by image id.

    An image takes as much room as its tokens: 9 MB for 576 tokens of width 4096 in float32, half of it in bfloat16.
    What layers of a mixer in the language model read of it is kept, too, and is several times as large.

    Args:
        files: Where the tokens are kept; of one model, see `check_frozen_vision`.
    """

    def __init__(self, files: TensorStore) -> None:
        self.files = files

    def encode(self, family: Family, model: Any, batch: Batch) -> EncodedImages:
        """The tokens of a batch's distinct images; those not kept yet are encoded in one call, without a graph.

        Args:
            family: Of the model.
            model: The unwrapped Hugging Face model.
            batch: With `image_ids`.

        Raises:
            ValueError: If the batch has images without `image_ids`.
        """
        if len(batch.image_ids) != len(batch.images):
            raise ValueError("the batch has images without image_ids: build it with AlignCollator")
        found = [self._read(image_id, model.device) for image_id in batch.image_ids]
        absent = [index for index, tensors in enumerate(found) if tensors is None]
        if absent:
            with torch.no_grad():
                encoded = family.encode_images(model, [batch.images[index] for index in absent])
            for number, index in enumerate(absent):
                layers = encoded.deepstack[number] if encoded.deepstack else ()
                found[index] = (encoded.tokens[number], *layers)
                self._keep(batch.image_ids[index], found[index] or ())
        return _joined([tensors for tensors in found if tensors is not None])

    def _read(self, image_id: str, device: Any) -> tuple[Tensor, ...] | None:
        kept = self.files.get(image_id)
        if kept is None:
            return None
        tensors, _ = kept
        return tuple(to_device(tensors[str(number)], device) for number in range(len(tensors)))

    def _keep(self, image_id: str, tensors: Sequence[Tensor]) -> None:
        self.files.offer(image_id, {str(number): tensor for number, tensor in enumerate(tensors)})


def _joined(images: Sequence[tuple[Tensor, ...]]) -> EncodedImages:
    """Per image its tokens, and what is added in the decoder's first layers where the family has that."""
    deep = tuple(layers for _, *layers in images)
    return EncodedImages(tuple(tokens for tokens, *_ in images), tuple(map(tuple, deep)) if any(deep) else ())


def check_frozen_vision(model: nn.Module) -> None:
    """Refuses a model whose image tokens change while it trains.

    Raises:
        ValueError: Naming what trains or holds an adapter.
    """
    hf = unwrap(model)
    family = family_of(hf)
    for name in trained_image_parameters(family, hf):
        raise ValueError(_refusal(f"{name} trains"))
    if not features_are_shared(family, hf):
        raise ValueError(_refusal("an adapter lies in the vision tower or projector"))


def _refusal(reason: str) -> str:
    return (
        f"cache_image_features keeps what vision tower and projector make of each image, but {reason}, so that would "
        "change with every step: freeze both (LoRA on the language model alone), or set cache_image_features=False; "
        "cache_pixels still saves the decoding"
    )
