"""Idefics3 and SmolVLM: square tiles and a global view through a SigLIP tower, pixel shuffle in the connector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from mllm_align.families.base import Family
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


def _row(name: str, model_type: str, untested: str = "") -> Idefics:
    return Idefics(
        name=name,
        model_types=(model_type,),
        language_model="model.text_model",
        tower="model.vision_model",
        projector="model.connector",
        image_keys=("pixel_values", "pixel_attention_mask"),
        image_tokens="square tiles row by row, each with its place in words, then a global view",
        untested=untested,
    )


IDEFICS3 = _row("Idefics3", "idefics3")
SMOLVLM = _row("SmolVLM", "smolvlm", "the stock processor with its video half (torchvision, num2words)")
