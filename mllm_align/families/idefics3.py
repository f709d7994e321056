"""Idefics3 and SmolVLM: square tiles and a global view through a SigLIP tower, pixel shuffle in the connector."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from transformers.models.idefics3.image_processing_pil_idefics3 import get_resize_output_image_size

from mllm_align.families.base import Family
from mllm_align.families.grids import Grid, grid, side, tiles
from mllm_align.families.padding import pad_tiles


@dataclass(frozen=True, kw_only=True)
class Idefics(Family):
    """Per image `pixel_values` (1, tiles, 3, h, w) and `pixel_attention_mask` (1, tiles, h, w).

    The model returns one tensor per entry of the leading axis. With one image in each entry that is one per image,
    which the processor's own layout (all images of a prompt in one entry) does not give.
    """

    def join_images(self, images: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Tiles padded with zeros, which the model drops: no normalised 8-bit tile is zero throughout."""
        return {key: pad_tiles([image[key] for image in images]) for key in self.image_keys if key in images[0]}

    def cells(self, config: Any, pixels: Tensor) -> tuple[int, int]:
        """Patches, less those that are shuffled into one."""
        rows, columns = super().cells(config, pixels)
        return rows // config.scale_factor, columns // config.scale_factor

    def set_view_tokens(self, processor: Any, tokens: int, cells: tuple[int, int]) -> None:
        """By its `image_seq_len`."""
        processor.image_seq_len = tokens

    def token_grids(
        self, image: Mapping[str, Tensor], size: tuple[int, int], image_processor: Any, config: Any
    ) -> tuple[Grid, ...]:
        """Tiles of the image squashed to whole tiles, then the squashed global view."""
        pixels = image["pixel_values"]
        cells, entries = self.cells(config, pixels), pixels.shape[1]
        if entries == 1:
            return (grid(*cells),)
        rows, columns = _num_tiles(size, image_processor)
        if entries != rows * columns + 1:
            raise ValueError(
                f"an image of {size[0]} x {size[1]} pixels has {entries} views where its processor now makes "
                f"{rows} x {columns} tiles and one more: it was processed with another size"
            )
        found = list(tiles(rows, columns, cells))
        return (*found, grid(*cells, start=found[-1].stop))


def _num_tiles(size: tuple[int, int], image_processor: Any) -> tuple[int, int]:
    """Rows and columns, as the processor resizes: to its longest edge, then up to multiples of a tile."""
    longest, (width, height) = side(image_processor.size, "longest_edge"), size
    if image_processor.do_resize and longest:
        # It looks at the shape alone.
        height, width = get_resize_output_image_size(np.broadcast_to(np.uint8(0), (3, height, width)), longest)
    elif image_processor.do_resize:
        height, width = side(image_processor.size, "height"), side(image_processor.size, "width")
    tile, ratio = side(image_processor.max_image_size, "longest_edge"), width / height
    if width >= height:
        columns = math.ceil(width / tile)
        return math.ceil(int(columns * tile / ratio) / tile), columns
    rows = math.ceil(height / tile)
    return rows, math.ceil(int(rows * tile * ratio) / tile)


def _row(name: str, model_type: str, untested: str = "") -> Idefics:
    return Idefics(
        name=name,
        model_types=(model_type,),
        language_model="model.text_model",
        tower="model.vision_model",
        projector="model.connector",
        first_linear="modality_projection.proj",
        image_keys=("pixel_values", "pixel_attention_mask"),
        image_tokens="square tiles row by row, each with its place in words, then a global view",
        untested=untested,
    )


IDEFICS3 = _row("Idefics3", "idefics3")
SMOLVLM = _row("SmolVLM", "smolvlm", "the stock processor with its video half (torchvision, num2words)")
