"""How the states of a vision model lie on the image it was shown: tokens before the patches, stride, maps."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional

from mllm_align.vision.mixers.base import Cells

# Of models whose configuration does not say how many tokens come before the patches: none, a class, a distillation.
USUAL_PREFIXES = (0, 1, 2)


class Reading(NamedTuple):
    """How one hidden state lies on the image.

    Attributes:
        stride: Pixels from one cell to the next.
        prefix: Tokens before those of the patches: classes, registers.
        width: Of a vector.
        channels_last: Of maps with four axes.
    """

    stride: int
    prefix: int
    width: int
    channels_last: bool

    def values(self, states: Tensor, cells: Cells) -> Tensor:
        """(V, rows, columns, width) of states of an image of `cells` strides.

        Raises:
            ValueError: If they do not lie on it as this says.
        """
        rows, columns = cells
        if states.dim() == 4:
            states = states if self.channels_last else states.permute(0, 2, 3, 1)
            if states.shape[1:3] != cells:
                raise ValueError(f"it gives a map of {tuple(states.shape[1:3])} for {rows} x {columns} patches")
            return states
        if states.shape[1] != rows * columns + self.prefix:
            raise ValueError(
                f"it gives {states.shape[1]} tokens for {rows} x {columns} patches and {self.prefix} others"
            )
        return states[:, self.prefix :].unflatten(1, cells)


def read(states: Tensor, side: int, config: Any) -> Reading:
    """How states lie on the square image that they were made of.

    Args:
        states: (V, tokens, width), the patches last and row by row, or a map (V, width, rows, columns).
        side: Of the image, in pixels.
        config: The vision model's.

    Raises:
        ValueError: If no grid of patches leaves as many tokens before it as such models have.
    """
    if states.dim() == 4:
        channels_last = states.shape[1] == states.shape[2] != states.shape[3]
        rows, width = (states.shape[1], states.shape[3]) if channels_last else (states.shape[2], states.shape[1])
        stride = _stride(side, rows**2, config)
        if side // stride != rows:
            raise ValueError(f"it gives a map of {rows} rows for an image of {side} pixels: no stride fits")
        return Reading(stride, 0, width, channels_last)
    if states.dim() != 3:
        raise ValueError(f"its states have the shape {tuple(states.shape)}, neither tokens nor maps")
    tokens = states.shape[1]
    stride = _stride(side, tokens, config)
    prefix = tokens - (side // stride) ** 2
    known = known_prefix(config)
    right = (known,) if known else USUAL_PREFIXES
    if prefix not in right:
        raise ValueError(
            f"it gives {tokens} tokens for an image of {side} pixels: {side // stride} x {side // stride} patches "
            f"and {prefix} others, where {' or '.join(map(str, right))} were expected"
        )
    return Reading(stride, prefix, states.shape[2], False)


def _stride(side: int, tokens: int, config: Any) -> int:
    """The patch, or what it becomes in models that merge two by two on their way (ConvNeXt, Swin)."""
    stride = patch_of(config) or 1
    while (side // stride) ** 2 > tokens:
        stride *= 2
    return stride


def known_prefix(config: Any) -> int:
    """Classes and registers that the configuration counts; 0 where it says nothing."""
    registers = getattr(config, "num_register_tokens", None) or getattr(config, "num_registers", None) or 0
    return registers + getattr(config, "num_cls_tokens", 1) if registers else getattr(config, "num_cls_tokens", 0)


def patch_of(config: Any) -> int | None:
    """Side of a patch, where the model has patches of one side.

    Raises:
        ValueError: If they are not square.
    """
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, list | tuple):
        if len(set(patch)) > 1:
            raise ValueError(f"its patches of {patch} pixels are not square")
        patch = patch[0]
    return patch if isinstance(patch, int) else None


def fit(values: Tensor, cells: Cells) -> Tensor:
    """(V, rows, columns, d) to the cells wanted: bilinear in float32, by area (`align_corners` False)."""
    if values.shape[1:3] == cells:
        return values
    planes = functional.interpolate(values.permute(0, 3, 1, 2).float(), cells, mode="bilinear", align_corners=False)
    return planes.permute(0, 2, 3, 1).to(values.dtype)


def shown(pixels: Tensor, size: Cells) -> Tensor:
    """(V, 3, *size) float32 in 0..1 of pixels (V, 3, h, w): bicubic, antialiased, as Pillow resizes."""
    pixels = pixels.float()
    if pixels.shape[-2:] == size:
        return pixels
    resized = functional.interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=True)
    return resized.clamp(0, 1)
