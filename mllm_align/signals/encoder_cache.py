"""What frozen further encoders see, on disk: each runs once per view of an image, not once per step."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mllm_align.contract import Batch
from mllm_align.families import Family, inner
from mllm_align.families.base import to_device
from mllm_align.signals.store import TensorStore
from mllm_align.vision.mixed_vision import mixed_of
from mllm_align.vision.mixers import Cells, Map

Owner = tuple[str, int]  # id of an image, which of its views


class EncoderCache:
    """Features of the frozen further encoders of a mixer, by image, view and grid.

    The mixer, the projector and the tower may train: what they make is not kept. A view takes as much room as its
    features: 2.4 MB for 576 patches of width 1024 in float32, half of it in bfloat16.

    Args:
        stores: By number of the encoder, where its features are; each of that encoder as it is, in one dtype and for
            one dtype of pixels (see `trainers.caches`).
    """

    def __init__(self, stores: Mapping[int, TensorStore]) -> None:
        self.stores = stores
        self._views: dict[str, int] = {}

    @contextmanager
    def known(self, family: Family, model: Any, batch: Batch) -> Iterator[None]:
        """Inside, the batch's images are encoded without running an encoder on views that it saw before.

        Args:
            family: Of the model.
            model: The unwrapped Hugging Face model; its encoders are those of the stores.
            batch: With `image_ids`; all of its images are encoded in one call.

        Raises:
            ValueError: If the batch has images without `image_ids`.
        """
        mixed = mixed_of(inner(model))
        if mixed is None or not batch.images:
            yield
            return
        if len(batch.image_ids) != len(batch.images):
            raise ValueError("the batch has images without image_ids: build it with AlignCollator")
        owners = [
            (image_id, view)
            for image_id, image in zip(batch.image_ids, batch.images, strict=True)
            for view in range(self._count(family, model, image_id, image))
        ]
        before, mixed.known = mixed.known, functools.partial(self._see, owners)
        try:
            yield
        finally:
            mixed.known = before

    def _see(
        self, owners: Sequence[Owner], number: int, encoder: Any, pixels: Tensor, cells: Cells, views: Sequence[int]
    ) -> Map:
        """What an encoder sees of some views; it runs on those alone that are not kept yet."""
        store = self.stores.get(number)
        if store is None:
            return encoder(pixels, cells)
        keys = [_key(*owners[view], cells) for view in views]
        found = [_read(store, key, pixels.device) for key in keys]
        absent = [index for index, values in enumerate(found) if values is None]
        if absent:
            seen = encoder(pixels[absent] if len(absent) < len(found) else pixels, cells).values
            for index, values in zip(absent, seen, strict=True):
                found[index] = values
                store.offer(keys[index], {"values": values})
        return Map(torch.stack([values for values in found if values is not None]), cells)

    def _count(self, family: Family, model: Any, image_id: str, image: Mapping[str, Tensor]) -> int:
        if image_id not in self._views:
            self._views[image_id] = count_views(family, model, image)
        return self._views[image_id]


class _Shown(Exception):
    """Raised where a tower would begin."""


def count_views(family: Family, model: Any, image: Mapping[str, Tensor]) -> int:
    """How many views of an image the model's tower is shown; the tower does not run.

    Args:
        family: Of the model.
        model: The unwrapped Hugging Face model.
        image: The processor's tensors.
    """
    found: list[int] = []

    def shown(tower: Any, args: Any, kwargs: Any) -> None:
        found.append(len(family.tower_views(model.config, args, kwargs)))
        raise _Shown

    handle = family.module(model, family.tower).register_forward_pre_hook(shown, with_kwargs=True)
    try:
        family.encode_images(model, [image])
    except _Shown:
        pass
    finally:
        handle.remove()
    return found[0]


def _key(image_id: str, view: int, cells: Cells) -> str:
    text = f"{image_id}|{view}|{cells[0]}x{cells[1]}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _read(store: TensorStore, key: str, device: Any) -> Tensor | None:
    kept = store.get(key)
    return None if kept is None else to_device(kept[0]["values"], device)
