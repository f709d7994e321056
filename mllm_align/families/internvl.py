"""InternVL in its Hugging Face form: square tiles and a thumbnail, pixel shuffle before the projector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from mllm_align.families.grids import Grid, grid, tiles
from mllm_align.families.llava import Llava
from mllm_align.families.tiles import Tiled


@dataclass(frozen=True, kw_only=True)
class InternVL(Tiled, Llava):
    """Per image `pixel_values` (tiles, 3, h, w): the grid of tiles row by row, then the thumbnail."""

    def cells(self, config: Any, pixels: Tensor) -> tuple[int, int]:
        """Patches, less those that are shuffled into one."""
        rows, columns = super().read_cells(config, pixels)
        return int(rows * config.downsample_ratio), int(columns * config.downsample_ratio)

    def read_cells(self, config: Any, pixels: Tensor) -> tuple[int, int]:
        """As many as tokens: patches are shuffled together before the projector."""
        return self.cells(config, pixels)

    def set_view_tokens(self, processor: Any, tokens: int, cells: tuple[int, int]) -> None:
        """By its `image_seq_length`."""
        processor.image_seq_length = tokens

    def token_grids(
        self, image: Mapping[str, Tensor], size: tuple[int, int], image_processor: Any, config: Any
    ) -> tuple[Grid, ...]:
        """Tiles of the image squashed to their canvas, then the squashed thumbnail."""
        pixels = image["pixel_values"]
        cells, entries = self.cells(config, pixels), len(pixels)
        if entries == 1:
            return (grid(*cells),)
        own = image_processor
        tile = pixels.shape[-2], pixels.shape[-1]
        columns, rows = get_optimal_tiled_canvas((size[1], size[0]), tile, own.min_patches, own.max_patches)
        if entries - rows * columns not in (0, 1):
            raise ValueError(
                f"an image of {size[0]} x {size[1]} pixels has {entries} views where its processor now makes "
                f"{rows} x {columns} tiles: it was processed with other min_patches or max_patches"
            )
        found = list(tiles(rows, columns, cells))
        thumbnail = [grid(*cells, start=found[-1].stop)] if entries > rows * columns else []
        return (*found, *thumbnail)


INTERNVL = InternVL(
    name="InternVL",
    model_types=("internvl",),
    image_tokens="`min_patches` to `max_patches` square tiles row by row, a thumbnail, `<img>` and `</img>` around",
    untested="the stock processor with its video half (torchvision)",
)
