"""Gemma3: each image sees itself both ways; most layers slide. LoRA's projector scope is empty.

The projector is an RMS norm and a bare matrix, no linear layer: it is trained whole (`modules_to_save`) or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from mllm_align.families.grids import Grid, grid, tiles
from mllm_align.families.tiles import Tiled


@dataclass(frozen=True, kw_only=True)
class Gemma3(Tiled):
    """Per image `pixel_values` (1 + crops, 3, h, w): there are crops where the processor pans and scans.

    `token_type_ids` are 1 at image tokens, 0 elsewhere.
    """

    def two_way_blocks(self, input_ids: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        """(P,) every unbroken run of image tokens is a block."""
        is_image = extras["token_type_ids"] == 1
        begins = is_image & ~pad(is_image, (1, 0))[:-1]
        return (begins.cumsum(0) - 1).masked_fill(~is_image, -1)

    def cells(self, config: Any, pixels: Tensor) -> tuple[int, int]:
        """Patches pooled to a square of `mm_tokens_per_image`."""
        side = math.isqrt(config.mm_tokens_per_image)
        return side, side

    def set_view_tokens(self, processor: Any, tokens: int, cells: tuple[int, int]) -> None:
        """By its `image_seq_length`, and by the text that an image becomes, which is made once."""
        tokenizer = processor.tokenizer
        processor.image_seq_length = tokens
        placeholders = tokenizer.image_token * tokens
        processor.full_image_sequence = f"\n\n{tokenizer.boi_token}{placeholders}{tokenizer.eoi_token}\n\n"

    def token_grids(
        self, image: Mapping[str, Tensor], size: tuple[int, int], image_processor: Any, config: Any
    ) -> tuple[Grid, ...]:
        """The squashed image, then its crops side by side along its longer side, where it was panned."""
        crops = len(image["pixel_values"]) - 1
        whole = grid(*self.cells(config, image["pixel_values"]))
        if not crops:
            return (whole,)
        width, height = size
        rows, columns = (1, crops) if width >= height else (crops, 1)
        share = math.ceil(width / columns) / width, math.ceil(height / rows) / height
        return (whole, *tiles(rows, columns, (whole.rows, whole.columns), whole.stop, share))


GEMMA3 = Gemma3(
    name="Gemma3",
    model_types=("gemma3",),
    token_keys=("token_type_ids",),
    first_linear=None,
    image_tokens="`mm_tokens_per_image` pooled patches of one square view, `<start_of_image>` and `<end_of_image>` "
    "around, which see each other both ways; the same of each crop with `do_pan_and_scan`",
)
