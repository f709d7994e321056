"""Families that encode images as equally long entries of one tensor: tiles, crops, or whole images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mllm_align.families.base import Family, image_entries


@dataclass(frozen=True, kw_only=True)
class Tiled(Family):
    """Per image `pixel_values` (entries, 3, h, w), of each of which the model makes equally many tokens."""

    def split_tokens(self, output: BaseModelOutputWithPooling, images: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
        """The entries (entries, tokens, d) of all images, cut per image and laid out as one row of tokens."""
        entries = [len(image["pixel_values"]) for image in images]
        return [tokens.flatten(0, 1) for tokens in image_entries(output).split(entries)]

    def joined_tokens(self, images: Sequence[Tensor]) -> Tensor:
        """One tensor of equally long entries, none of which holds tokens of two images, as beams must copy images."""
        length = math.gcd(*(len(image) for image in images))
        return torch.cat(list(images)).unflatten(0, (-1, length))
