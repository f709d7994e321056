"""LLaVA-NeXT: a base view and a grid of tiles, unpadded, with a learned newline after each row of patches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from mllm_align.families.grids import Grid, grid
from mllm_align.families.llava import Llava, num_class_tokens
from mllm_align.families.padding import pad_tiles


@dataclass(frozen=True, kw_only=True)
class LlavaNext(Llava):
    """LLaVA with tiles: `pixel_values` (1, tiles, 3, h, w) and `image_sizes` (1, 2), original height and width."""

    def join_images(self, images: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Tiles padded to the longest image; the model finds each image's number of tiles by its size."""
        return {
            "pixel_values": pad_tiles([image["pixel_values"] for image in images]),
            "image_sizes": torch.cat([image["image_sizes"] for image in images]),
        }

    def token_grids(
        self, image: Mapping[str, Tensor], size: tuple[int, int], image_processor: Any, config: Any
    ) -> tuple[Grid, ...]:
        """The squashed base view, then that of the tiles, unpadded by whole tokens, a newline after each row."""
        pixels = image["pixel_values"]
        cells, start = self.cells(config, pixels), num_class_tokens(config)
        base = grid(*cells, start=start)
        if not self.has_tiles(image):
            return (base,)
        canvas = select_best_resolution((size[1], size[0]), config.image_grid_pinpoints)
        return base, self.tile_grid(size, canvas, pixels.shape[-2] // cells[0], base.stop, config)

    def has_tiles(self, image: Mapping[str, Tensor]) -> bool:
        """Whether the model reads tiles of an image beside its base view."""
        return image["pixel_values"].shape[1] > 1

    def tile_grid(self, size: tuple[int, int], canvas: tuple[int, int], patch: int, start: int, config: Any) -> Grid:
        """The grid over all tiles.

        The model cuts the padding off in whole tokens, so that cells at the edge may show padding, or the edge of the
        image may be in none.

        Args:
            size: Width and height of the original.
            canvas: Height and width of all tiles together, in pixels.
            patch: Pixels along a token's side.
            start: Number of its first token.
            config: The model's.
        """
        width, height = size
        rows, columns = canvas[0] // patch, canvas[1] // patch
        scale = min(canvas[1] / width, canvas[0] / height)
        # The image on the canvas, as the processor rounds it.
        shown = min(math.ceil(width * scale), canvas[1]), min(math.ceil(height * scale), canvas[0])
        left, top = (canvas[1] - shown[0]) // 2, (canvas[0] - shown[1]) // 2
        # And as the model does.
        if width / height > columns / rows:
            cut = (0, (rows - int(round(height * (columns / width), 7))) // 2)
        else:
            cut = ((columns - int(round(width * (rows / height), 7))) // 2, 0)
        xs = [(edge * patch - left) / shown[0] for edge in (cut[0], columns - cut[0])]
        ys = [(edge * patch - top) / shown[1] for edge in (cut[1], rows - cut[1])]
        rows, columns = self.shrunk(rows - 2 * cut[1], columns - 2 * cut[0], config)
        return grid(rows, columns, (xs[0], ys[0], xs[1], ys[1]), start, newlines=True)

    def shrunk(self, rows: int, columns: int, config: Any) -> tuple[int, int]:
        """Rows and columns of tokens that are left of those of all tiles."""
        return rows, columns

    def scope_of(self, name: str) -> str | None:
        """As everywhere; the newline embedding was trained with the projector and belongs to it."""
        return "projector" if name == "model.image_newline" else super().scope_of(name)


LLAVA_NEXT = LlavaNext(
    name="LLaVA-NeXT",
    model_types=("llava_next",),
    image_keys=("pixel_values", "image_sizes"),
    fixed_tokens="its tokens are laid out over tiles with newlines: the processor cannot be told another number",
    image_tokens="base view, tiles without their padding, a newline per row",
)
