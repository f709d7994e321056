"""Vision models as teachers: patch tokens, pooled by exact area coverage."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mllm_align.contract import Teacher
from mllm_align.families.grids import Grid, grid
from mllm_align.vision.geometry import box_weights, mask_weights
from mllm_align.vision.regions import Located
from mllm_align.vision.teacher_parts import VERSION, Described, Pixels, states_of


class VisionTeacher:
    """A vision model of `transformers`: DINOv2, SigLIP, CLIP, RADIO, ViT, ConvNeXt, ...

    An object is the mean of the patches that it covers, by how much of each; an image the mean of all. Tokens before
    the patches (classes, registers) are left out. An object that covers nothing is zero.

    Args:
        teacher: Which one.
        model: Takes `pixel_values` and gives tokens (N, T, d), the patches last among them, or maps (N, d, h, w).
        pixels: How images are shown.
    """

    def __init__(self, teacher: Teacher, model: Any, pixels: Pixels) -> None:
        self.teacher, self.model, self.pixels = teacher, model, pixels
        self.width = 0  # known after the first image
        self.options: dict[str, Any] = {"return_dict": True}
        if teacher.layer is not None:
            self.options["output_hidden_states"] = True
        if "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
            self.options["interpolate_pos_encoding"] = pixels.size != getattr(model.config, "image_size", None)
        patch = getattr(model.config, "patch_size", None)
        if isinstance(patch, int) and pixels.size % patch:
            raise ValueError(
                f"teacher {str(teacher)!r}: patches of {patch} pixels do not fill images of {pixels.size}: give the "
                f"teacher size {max(round(pixels.size / patch), 1) * patch}"
            )
        self.cells = pixels.size // patch if isinstance(patch, int) else None

    @property
    def facts(self) -> dict[str, Any]:
        """What, beside the weights, decides its numbers."""
        return {"kind": "vision", "layer": self.teacher.layer, "version": VERSION, **self.pixels.facts}

    @torch.no_grad()
    def __call__(
        self, images: Sequence[Image.Image], objects: Sequence[Sequence[Described]], pooling: str
    ) -> list[Tensor]:
        """Per image, on the host in float32: (objects on it, width) for "regions", (1, width) for "mean"."""
        tokens, cells = self.patches(images)
        if pooling == "mean":
            return [own.mean(dim=0, keepdim=True).cpu() for own in tokens]
        return [covered_mean(own, coverage(there, cells)).cpu() for own, there in zip(tokens, objects, strict=True)]

    @torch.no_grad()
    def patches(self, images: Sequence[Image.Image]) -> tuple[Tensor, Grid]:
        """(N, cells, d) float32 patch tokens row by row, where the model is; and where they lie on each image.

        Raises:
            ValueError: If there are fewer tokens than patches.
        """
        device = next(self.model.parameters()).device
        output = self.model(pixel_values=self.pixels(images).to(device), **self.options)
        states = states_of(output, self.teacher).float()
        if states.dim() == 4:
            return states.flatten(2).transpose(1, 2), grid(states.shape[2], states.shape[3])
        side = self.cells or int(states.shape[1] ** 0.5)
        if states.shape[1] < side * side:
            raise ValueError(f"it gives {states.shape[1]} tokens for {side} x {side} patches")
        return states[:, states.shape[1] - side * side :], grid(side, side)


def covered_mean(tokens: Tensor, weights: Tensor) -> Tensor:
    """(objects, d) means of tokens (cells, d) by weights (objects, cells); zero where there is no weight."""
    weights = weights.to(tokens.device)
    return weights @ tokens / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)


def coverage(objects: Sequence[Located], cells: Grid) -> Tensor:
    """(objects, cells) float32: how much of each cell of one grid over the whole image each object covers."""
    boxes = torch.tensor([each.box for each in objects], dtype=torch.float64).reshape(-1, 4)
    found = box_weights(boxes, [cells], cells.stop)
    for number, each in enumerate(objects):
        if each.mask is not None:
            found[number] = mask_weights(torch.as_tensor(each.mask)[None], [cells], cells.stop)[0]
    return found
