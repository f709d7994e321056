"""InternVL in its Hugging Face form: square tiles and a thumbnail, pixel shuffle before the projector."""

from __future__ import annotations

from dataclasses import dataclass

from mllm_align.families.llava import Llava
from mllm_align.families.tiles import Tiled


@dataclass(frozen=True, kw_only=True)
class InternVL(Tiled, Llava):
    """Per image `pixel_values` (tiles, 3, h, w): the grid of tiles row by row, then the thumbnail."""


INTERNVL = InternVL(
    name="InternVL",
    model_types=("internvl",),
    image_tokens="`min_patches` to `max_patches` square tiles row by row, a thumbnail, `<img>` and `</img>` around",
    untested="the stock processor with its video half (torchvision)",
)
