"""Images of different numbers of tiles, or of different sizes, in one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def pad_tiles(images: Sequence[Tensor]) -> Tensor:
    """(n, max tiles, ...) from n tensors (1, tiles, ...), padded with zero tiles behind the real ones.

    Raises:
        ValueError: If an entry holds several images or the tiles differ in size.
    """
    shapes = {tuple(image.shape[2:]) for image in images}
    if len(shapes) > 1 or any(image.shape[0] != 1 for image in images):
        found = ", ".join(str(tuple(image.shape)) for image in images)
        raise ValueError(f"expected one image per tensor, (1, tiles, ...), with tiles of one size; got {found}")
    longest = max(image.shape[1] for image in images)
    behind_tiles = [0, 0] * len(next(iter(shapes)))
    return torch.cat(
        [functional.pad(image, (*behind_tiles, 0, longest - image.shape[1])) for image in images],
    )


def pad_sides(images: Sequence[Tensor]) -> Tensor:
    """(n, 3, max h, max w) from n tensors (1, 3, h, w), padded with zeros below and on the right."""
    height, width = (max(image.shape[axis] for image in images) for axis in (-2, -1))
    return torch.cat(
        [functional.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2])) for image in images]
    )
