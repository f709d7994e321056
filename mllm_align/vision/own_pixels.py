"""Larger pixels of the same views for further encoders (`pixels: own`), made by the model's own processor."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution
from transformers.image_utils import make_flat_list_of_images

from mllm_align.families.base import EXTRA_PIXELS, Family
from mllm_align.families.grids import WHOLE
from mllm_align.families.llava_next import LlavaNext

Area = tuple[float, float, float, float]  # left, top, right, bottom in widths and heights of the image


class OwnPixels(NamedTuple):
    """What a processor has to know to make them.

    Attributes:
        family: Of the model.
        config: The model's.
        side: Of a view, in pixels.
    """

    family: Family
    config: Any
    side: int


def wrap_processor(processor: Any, family: Family, config: Any, size: int) -> Any:
    """Lets a processor give `extra_pixel_values` beside its own outputs; it is changed in place, and returned.

    They are (views, 3, size, size) uint8, for all images one after the other, one for each view that the tower is
    shown and of the same part of the image; beyond its edges they have the colour that the processor pads with. What
    it saves is the stock processor.

    Args:
        processor: The model's.
        family: The model's.
        config: The model's.
        size: Pixels along a view's side.

    Raises:
        ValueError: If the family's pixels are not views of equal size, or the processor is wrapped already.
    """
    if hasattr(processor, "own_pixels"):
        raise ValueError("the processor makes extra pixels already: unwrap it first")
    if family.projects_in_tower or _packs(family):
        raise ValueError(
            f"{family.name} shows its tower the whole image at the resolution it has: further encoders lose nothing "
            "by reading the same pixels; leave pixels: own out"
        )
    if size < 1:
        raise ValueError(f"extra pixels must be at least 1 along a side, not {size}")
    processor.own = OwnPixels(family, config, size)
    processor.__class__ = _wrapped(type(processor))
    return processor


def unwrap_processor(processor: Any) -> Any:
    """The inverse, in place; a processor that is not wrapped stays as it is."""
    if hasattr(processor, "own_pixels"):
        processor.__class__ = type(processor).stock
        del processor.own
    return processor


def view_areas(
    family: Family, tensors: Mapping[str, Tensor], size: tuple[int, int], image_processor: Any, config: Any
) -> list[Area]:
    """Which part of an image each view of its tower shows, in the order of the views.

    Args:
        family: The model's.
        tensors: The processor's, of this image alone.
        size: Width and height of the upright original.
        image_processor: The one that made them.
        config: The model's.
    """
    if not isinstance(family, LlavaNext):
        return [each.area for each in family.token_grids(tensors, size, image_processor, config)]
    if not family.has_tiles(tensors):
        return [WHOLE]
    width, height = size
    side = tensors["pixel_values"].shape[-1]
    down, across = select_best_resolution((height, width), config.image_grid_pinpoints)
    # The image in the middle of the canvas, as the processor rounds it.
    scale = min(across / width, down / height)
    shown = min(math.ceil(width * scale), across), min(math.ceil(height * scale), down)
    left, top = (across - shown[0]) // 2, (down - shown[1]) // 2
    edges = [
        (x, y, x + side, y + side) for y in range(-top, down - top, side) for x in range(-left, across - left, side)
    ]
    return [WHOLE, *((l / shown[0], t / shown[1], r / shown[0], b / shown[1]) for l, t, r, b in edges)]  # noqa: E741


def render(image: Image.Image, area: Area, side: int, colour: tuple[int, int, int]) -> Tensor:
    """(3, side, side) uint8: a part of an image, bicubic and antialiased; a colour beyond its edges."""
    width, height = image.size
    box = [area[0] * width, area[1] * height, area[2] * width, area[3] * height]
    # Edges that rounding alone puts outside are the image's.
    limits = (0, 0, width, height)
    box = [limit if abs(edge - limit) < 1e-6 * max(limits) else edge for edge, limit in zip(box, limits, strict=True)]
    before = [max(0, math.ceil(-edge)) for edge in box[:2]]
    behind = [max(0, math.ceil(edge - limit)) for edge, limit in zip(box[2:], (width, height), strict=True)]
    if any(before) or any(behind):
        canvas = Image.new("RGB", (width + before[0] + behind[0], height + before[1] + behind[1]), colour)
        canvas.paste(image, (before[0], before[1]))
        image, box = canvas, [edge + before[number % 2] for number, edge in enumerate(box)]
    drawn = image.resize((side, side), Image.Resampling.BICUBIC, box=(box[0], box[1], box[2], box[3]))
    return torch.from_numpy(np.array(drawn)).permute(2, 0, 1)


class _Wrapped:
    """What is put before a processor's class."""

    own: OwnPixels

    @property
    def own_pixels(self) -> dict[str, Any]:
        """What, beside the stock processor, decides its outputs."""
        return {EXTRA_PIXELS: self.own.side}

    @property
    def model_input_names(self) -> list[str]:
        """The stock ones, and one more."""
        return [*super().model_input_names, EXTRA_PIXELS]  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """The class is made anew, as it has the name of the stock one."""
        return _bare, (type(self).stock,), self.__dict__.copy()  # type: ignore[attr-defined]

    def _process_images(self, images: Any, **kwargs: Any) -> Any:
        processed, replacements = super()._process_images(images, **kwargs)  # type: ignore[misc]
        prompts = [prompt if isinstance(prompt, list | tuple) else [prompt] for prompt in _listed(images)]
        only = processed if sum(map(len, prompts)) == 1 and kwargs.get("return_tensors") == "pt" else None
        views: dict[tuple[int, bool], Tensor] = {}  # of each image once, however often it is there
        order = [(image, len(prompt) > 1) for prompt in prompts for image in prompt]
        for image, several in order:
            if (id(image), several) not in views:
                views[id(image), several] = self._views(image, only or self._alone(image, several, kwargs))
        processed[EXTRA_PIXELS] = torch.cat([views[id(image), several] for image, several in order])
        return processed, replacements

    def _alone(self, image: Any, several: bool, kwargs: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """The stock outputs of one image: those of several have padding."""
        # Twice where one of several is treated differently.
        twice = several and "batch_num_images" in self.own.family.image_keys
        images = [[image, image]] if twice else [[image]]
        alone = self.image_processor(images, **{**kwargs, "return_tensors": "pt"})  # type: ignore[attr-defined]
        return {key: alone[key][:1] if twice else alone[key] for key in self.own.family.image_keys if key in alone}

    def _views(self, image: Any, tensors: Mapping[str, Tensor]) -> Tensor:
        """(views, 3, side, side) of one image."""
        own, image_processor = self.own, self.image_processor  # type: ignore[attr-defined]
        upright = _picture(image)
        areas = view_areas(own.family, tensors, upright.size, image_processor, own.config)
        colour = _padding_colour(image_processor)
        return torch.stack([render(upright, area, own.side, colour) for area in areas])


@functools.cache
def _wrapped(stock: type) -> type:
    names = {"__module__": stock.__module__, "__qualname__": stock.__qualname__, "__doc__": stock.__doc__}
    return type(stock.__name__, (_Wrapped, stock), {**names, "stock": stock})


def _bare(stock: type) -> Any:
    return object.__new__(_wrapped(stock))


def _packs(family: Family) -> bool:
    """Whether images keep their own shape: Pixtral's tower reads them as they are."""
    return "image_sizes" in family.image_keys and not isinstance(family, LlavaNext)


def _listed(images: Any) -> Sequence[Any]:
    flat: Any = images if isinstance(images, list | tuple) else make_flat_list_of_images(images)
    return list(flat)


def _picture(image: Any) -> Image.Image:
    """RGB of what processors take: a picture, or an array or tensor of bytes, channels first or last."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    values = np.asarray(image)
    if values.ndim == 3 and values.shape[0] == 3 != values.shape[2]:
        values = values.transpose(1, 2, 0)
    if values.dtype != np.uint8:
        raise ValueError("extra pixels are made of pictures or of arrays of bytes; an image is neither")
    return Image.fromarray(values).convert("RGB")


def _padding_colour(image_processor: Any) -> tuple[int, int, int]:
    """What the processor fills with: LLaVA-1.5's its mean colour, others black."""
    given = getattr(image_processor, "background_color", None)
    if isinstance(given, int):
        return given, given, given
    return (given[0], given[1], given[2]) if given else (0, 0, 0)
