"""Processed images on disk: a hit costs neither decoding nor processing."""

from __future__ import annotations

import os
from pathlib import Path

from mllm_align.data.pixels import EncodedImage, ImageEncoder
from mllm_align.data.tensor_files import TensorFiles

ABOUT = "Images as the processor hands them to the model, one file each. Safe to delete: they are made again."


class PixelCache:
    """What one processor with its settings made of images, by image id (`ImageEncoder.image_id`).

    A processor with other settings has a folder of its own. An image takes as much room as its pixel tensor, 1.4 MB
    at 336 x 336 in float32.

    Args:
        folder: Where the folders of all processors are.
        encoder: The processor and its settings.
    """

    def __init__(self, folder: str | os.PathLike[str], encoder: ImageEncoder) -> None:
        about = {"what": ABOUT, **encoder.facts}
        self.files = TensorFiles(Path(folder) / encoder.fingerprint, about)

    def get(self, image_id: str) -> EncodedImage | None:
        """The processed image, or None."""
        found = self.files.get(image_id)
        if found is None:
            return None
        tensors, text = found
        return EncodedImage(tensors, text["expansion"], (int(text["width"]), int(text["height"])))

    def put(self, image_id: str, image: EncodedImage) -> None:
        """Keeps a processed image; a full disk is a warning."""
        width, height = map(str, image.size)
        self.files.offer(image_id, image.tensors, {"expansion": image.expansion, "width": width, "height": height})
