"""One image through the processor: the tensors that the model reads, and the text that its placeholder becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class EncodedImage:
    """A processed image.

    Attributes:
        tensors: The processor's image outputs for this image alone, leading axes kept.
        expansion: What the processor writes in place of the image token, one image token per token of the image.
        size: (width, height) of the upright original.
    """

    tensors: Mapping[str, Tensor]
    expansion: str
    size: tuple[int, int]


class ImageEncoder:
    """Runs a processor on one image at a time.

    Args:
        processor: A processor with `image_token` and `image_processor`.
        image_keys: Names of the outputs that describe images.
        min_pixels: Smallest number of pixels that an image is resized to, where the image processor has the option.
        max_pixels: Largest number, likewise.

    Raises:
        ValueError: If `min_pixels` or `max_pixels` is given and the image processor has no such option.
    """

    def __init__(
        self,
        processor: Any,
        image_keys: Sequence[str],
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self.processor = processor
        self.image_keys = tuple(image_keys)
        options = pixel_options(processor, min_pixels, max_pixels)
        self.options = {"images_kwargs": options} if options else {}

    def __call__(self, image: Image.Image) -> EncodedImage:
        """Process an upright RGB image."""
        out = self.processor(
            text=[self.processor.image_token],
            images=[image],
            return_tensors="pt",
            add_special_tokens=False,
            return_text_replacement_offsets=True,
            **self.options,
        )
        replaced = out["text_replacement_offsets"][0]
        tensors = {key: out[key] for key in self.image_keys if key in out}
        return EncodedImage(tensors, replaced[0]["replacement"], image.size)


def pixel_options(processor: Any, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
    """The arguments that bound an image's pixels, for `images_kwargs` of a processor call.

    Raises:
        ValueError: If a bound is given and the image processor has none.
    """
    given = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return {}
    image_processor = processor.image_processor
    size = {key: value for key, value in dict(image_processor.size).items() if value is not None}
    if "min_pixels" not in getattr(image_processor.valid_kwargs, "__annotations__", {}):
        raise ValueError(
            f"{' and '.join(given)}: {type(image_processor).__name__} has no such option (it resizes to {size}); "
            "leave it out for this model"
        )
    # shortest_edge and longest_edge hold numbers of pixels in the processors that have min_pixels and max_pixels.
    by_edges = {"shortest_edge", "longest_edge"} <= size.keys()
    low = given.get("min_pixels", size.get("shortest_edge") if by_edges else None)
    high = given.get("max_pixels", size.get("longest_edge") if by_edges else None)
    if low is not None and high is not None and low > high:
        raise ValueError(
            f"min_pixels {low} is larger than max_pixels {high} (what is not given is the own of "
            f"{type(image_processor).__name__}); give both"
        )
    if by_edges:
        return {"size": {**size, "shortest_edge": low, "longest_edge": high}}
    return given
