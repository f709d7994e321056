"""Any vision model of `transformers` as a further encoder: views in, maps of patches out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mllm_align.vision.encoder_reading import Reading, fit, patch_of, read, shown
from mllm_align.vision.encoder_spec import Encoder
from mllm_align.vision.mixers.base import Cells, Map

# Models that shuffle their patches: they are told the order.
SHUFFLING = ("vit_mae",)
# What a model may raise that is shown an image of a shape it was not made for.
UNFIT = (RuntimeError, ValueError, AssertionError, IndexError, TypeError)
PROBES = 16


class Measured(NamedTuple):
    """What was found out by showing a model an image; plain data, but for the readings.

    Attributes:
        side, stride, follows, probe: See `VisionEncoder`.
        hidden_states: The layers whose states are asked for, by number; None where only the output is read.
        readings: How the states of each layer that is read lie on the image.
    """

    side: int
    stride: int
    follows: bool
    probe: tuple[float, ...]
    hidden_states: tuple[int, ...] | None
    readings: tuple[Reading, ...]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Measured:
        """From its `_asdict()`, as JSON gives it back."""
        probe, layers = tuple(given["probe"]), given["hidden_states"]
        readings = tuple(Reading(*each) for each in given["readings"])
        kept = None if layers is None else tuple(layers)
        return cls(given["side"], given["stride"], given["follows"], probe, kept, readings)


class VisionEncoder(nn.Module):
    """DINOv2, DINOv3, SigLIP, CLIP, MAE, ViT, ConvNeXt, RADIO, ... read as a map of patches in the cells wanted.

    It normalises by its own statistics, whatever the base model's are; with `spec.normalise` "base" by the base
    model's (MMVP's code shows DINOv2 pixels normalised for CLIP). A model that takes images of any size is shown one
    with as many patches as there are cells, so that its features need no resizing; another one, or one with
    `spec.size`, sees its own square, and its features are resized (Cambrian-1: bilinear, float32).

    A frozen one stays in evaluation mode, runs without a graph, and in its own dtype under autocast, too.

    Args:
        spec: Which one, and what is read of it.
        model: Takes `pixel_values`; where it is meant to stay.
        mean: Of the normalisation of what it is shown.
        std: Likewise.
        size: Side of the square that its processor makes; multiples of its stride, nearest to it, are used.
        measured: What was found out of such a model earlier; None to find it out now.

    Attributes:
        changed: Whether its weights are no longer those of the checkpoint that `spec` names.
        width: Of a vector.
        stride: Pixels from cell to cell of its output.
        follows: Whether it is shown images of any shape.
        side: Of the square it is shown otherwise.
        probe: Some of its features of one drawn image, as it was when made: they tell it from others.

    Raises:
        LookupError: If it has no such layer.
        ValueError: If it cannot see an image of this size, or its tokens are not patches.
    """

    def __init__(
        self,
        spec: Encoder,
        model: Any,
        mean: Sequence[float],
        std: Sequence[float],
        size: int,
        measured: Measured | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.mean, self.std = spec, tuple(mean), tuple(std)
        self.model, self.changed = model, False
        if hasattr(model.config, "mask_ratio"):
            model.config.mask_ratio = 0.0
        takes = inspect.signature(model.forward).parameters
        self.options: dict[str, Any] = {"return_dict": True}
        if spec.layer is not None:
            self.options["output_hidden_states"] = True
        if "interpolate_pos_encoding" in takes:
            self.options["interpolate_pos_encoding"] = True
        self.packs = "spatial_shapes" in takes
        training = model.training
        self.model.eval()
        if measured is None:
            with torch.no_grad():
                self._measure(size)
        else:
            self.side, self.stride, self.follows, probe, layers, readings = measured
            self.probe, self.readings = list(probe), list(readings)
            if layers is not None:
                self.options["output_hidden_states"] = list(layers)
        self.train(training)
        self.width = sum(reading.width for reading in self.readings)

    def train(self, mode: bool = True) -> VisionEncoder:
        """As of any module, but for a frozen model, which stays in evaluation mode."""
        super().train(mode)
        if self.spec.train == "frozen":
            self.model.eval()
        return self

    @property
    def measured(self) -> Measured:
        """What was found out of the model."""
        layers = self.options.get("output_hidden_states")
        kept = None if layers is None else tuple(layers)
        return Measured(self.side, self.stride, self.follows, tuple(self.probe), kept, tuple(self.readings))

    @property
    def dtype(self) -> torch.dtype:
        """Of what it computes in."""
        return next((each.dtype for each in self.model.parameters() if each.is_floating_point()), torch.float32)

    def shape(self, cells: Cells) -> Cells:
        """Height and width of the image that it is shown for these cells."""
        return (cells[0] * self.stride, cells[1] * self.stride) if self.follows else (self.side, self.side)

    def forward(self, pixels01: Tensor, cells: Cells) -> Map:
        """What it sees of some views.

        Args:
            pixels01: (V, 3, h, w) float32 in 0..1, not normalised; of any shape.
            cells: Rows and columns that are wanted.
        """
        pixels = shown(pixels01, self.shape(cells))
        if self.spec.train != "frozen":
            return self._map(pixels, cells)
        apart = torch.autocast(pixels.device.type, enabled=False) if pixels.device.type != "meta" else nullcontext()
        with torch.no_grad(), apart:
            return self._map(pixels, cells)

    def _map(self, pixels: Tensor, cells: Cells) -> Map:
        parts = [
            fit(reading.values(states, self._grid(pixels, reading)), cells)
            for reading, states in zip(self.readings, self.states(pixels), strict=True)
        ]
        values = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        return Map(values.flatten(1, 2), cells)

    @staticmethod
    def _grid(pixels: Tensor, reading: Reading) -> Cells:
        return pixels.shape[-2] // reading.stride, pixels.shape[-1] // reading.stride

    def states(self, pixels: Tensor) -> list[Tensor]:
        """Of each layer that is read, the model's own states for pixels (V, 3, h, w) in 0..1 of a shape it takes.

        Raises:
            LookupError: If there is no such layer.
        """
        output = self._output(pixels)
        return [_layer(output, layer) for layer in self.spec.layers]

    def _output(self, pixels: Tensor) -> Any:
        # By numbers of the host: a tensor of them would be copied to the device at each call.
        normalised = torch.stack(
            [(pixels[:, c] - mean) / std for c, (mean, std) in enumerate(zip(self.mean, self.std, strict=True))], dim=1
        ).to(self.dtype)
        return self.model(**self._inputs(normalised), **self.options)

    def _inputs(self, pixels: Tensor) -> dict[str, Tensor | None]:
        views, _, height, width = pixels.shape
        patch = patch_of(self.model.config) or 1
        rows, columns = height // patch, width // patch
        if self.packs:  # SigLIP 2 with images of any shape: patches, rows before columns before channels
            patches = pixels.unflatten(3, (columns, patch)).unflatten(2, (rows, patch)).permute(0, 2, 4, 3, 5, 1)
            return {
                "pixel_values": patches.reshape(views, rows * columns, -1),
                "pixel_attention_mask": None,
                "spatial_shapes": torch.tensor([[rows, columns]] * views),
            }
        if self.model.config.model_type in SHUFFLING:
            order = torch.arange(rows * columns, dtype=torch.float32, device=pixels.device)
            return {"pixel_values": pixels, "noise": order.expand(views, -1)}
        return {"pixel_values": pixels}

    def _measure(self, size: int) -> None:
        """Finds out by looking how its states lie on images, and which shapes it takes."""
        config, given = self.model.config, self.spec.size
        patch = patch_of(config) or 1
        if given is not None and given % patch:
            raise ValueError(
                f"patches of {patch} pixels do not fill images of {given}: "
                f"give it size {max(round(given / patch), 1) * patch}"
            )
        self.side = given or max(round(size / patch), 1) * patch
        try:
            output = self._output(image := self._drawn())
        except UNFIT:
            own = getattr(config, "image_size", None)
            own = max(own) if isinstance(own, list | tuple) else own
            if given is not None or own is None or own == self.side:
                raise
            self.side = own
            output = self._output(image := self._drawn())
        drawn = [_layer(output, layer) for layer in self.spec.layers]
        if self.spec.layer is not None:  # the others need not be kept
            count = len(output["hidden_states"])
            self.options["output_hidden_states"] = sorted(
                {layer % count for layer in self.spec.layers if layer is not None}
            )
        self.readings = [read(states, self.side, config) for states in drawn]
        # Of the output, whatever is read: an early stage of ConvNeXt sees a view as large as the last one would.
        self.stride = read(_layer(output, None), self.side, config).stride
        if self.side % self.stride:
            raise ValueError(
                f"cells of {self.stride} pixels do not fill images of {self.side}: "
                f"give it size {max(round(self.side / self.stride), 1) * self.stride}"
            )
        self.follows = given is None and self._takes_any_shape()
        self.probe = _some(
            torch.cat(
                [
                    reading.values(states, self._grid(image, reading)).float().mean(dim=(0, 1, 2))
                    for reading, states in zip(self.readings, drawn, strict=True)
                ]
            )
        )

    def _drawn(self) -> Tensor:
        return shown(_drawn_image(self._device()), (self.side, self.side))

    def _takes_any_shape(self) -> bool:
        """Whether an image that is not square, and not of its own size, has as many patches as it should."""
        pixels = torch.zeros(1, 3, self.side, self.side + self.stride, device=self._device())
        try:
            for reading, states in zip(self.readings, self.states(pixels), strict=True):
                reading.values(states, self._grid(pixels, reading))
        except UNFIT:
            return False
        return True

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def _layer(output: Any, layer: int | None) -> Tensor:
    if layer is None:
        states = output.get("last_hidden_state")
        return states if states is not None else output["features"]
    layers = output.get("hidden_states")
    if layers is None or not -len(layers) <= layer < len(layers):
        there = "no layers to choose from" if layers is None else f"the layers 0 to {len(layers) - 1}"
        raise LookupError(f"layer {layer} is not there; the model has {there}")
    return layers[layer]


def _drawn_image(device: Any) -> Tensor:
    """(1, 3, 48, 64) in 0..1: one image that is the same everywhere."""
    down, across = torch.meshgrid(torch.arange(48), torch.arange(64), indexing="ij")
    planes = torch.stack([down * 5 % 256, across * 4 % 256, down * across % 256])
    return (planes.float() / 255)[None].to(device)


def _some(features: Tensor) -> list[float]:
    index = torch.linspace(0, features.numel() - 1, PROBES, device=features.device).long()
    return [round(value, 6) for value in features[index].tolist()]
