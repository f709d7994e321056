"""One image through the processor: the tensors that the model reads, and the text that its placeholder becomes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
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
        image_keys: Names of the outputs that describe images; pixels that the processor makes for further encoders
            are added.
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
        self.image_keys = (*image_keys, *getattr(processor, "own_pixels", {}))
        self.tells_several = "batch_num_images" in self.image_keys
        options = pixel_options(processor, min_pixels, max_pixels)
        self.options = {"images_kwargs": options} if options else {}
        self.facts = processor_facts(processor) | {"options": options, "outputs": self.image_keys}
        text = json.dumps(self.facts, sort_keys=True, default=str)
        self.fingerprint = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def image_id(self, key: str) -> str:
        """A key of an image (by its `image_key`) and of everything that decides what is made of it."""
        return hashlib.blake2b(f"{self.fingerprint}|{key}".encode(), digest_size=16).hexdigest()

    def variant(self, key: str, several: bool) -> str:
        """The key of an image as it is processed alone in its prompt, or as one of several."""
        return f"{key}|several" if several and self.tells_several else key

    def num_tokens(self, image: EncodedImage) -> int:
        """How many tokens the language model reads of an image.

        What Gemma 3's processor calls the image token stands in front of them, and its tokenizer knows their own.
        """
        names = {self.processor.image_token, getattr(self.processor.tokenizer, "image_token", None)}
        return max(image.expansion.count(name) for name in names if name)

    def __call__(self, image: Image.Image, several: bool = False) -> EncodedImage:
        """Process an upright RGB image.

        Args:
            image: The image.
            several: Whether it is one of several in its prompt. Processors that return `batch_num_images` treat it
                differently then (LLaVA-OneVision cuts no tiles); they are shown it twice, and half is kept.
        """
        twice = several and self.tells_several
        out = self.processor(
            text=[self.processor.image_token * (2 if twice else 1)],
            images=[[image, image]] if twice else [image],
            return_tensors="pt",
            add_special_tokens=False,
            return_text_replacement_offsets=True,
            **self.options,
        )
        replaced = out["text_replacement_offsets"][0]
        tensors = {key: out[key][:1] if twice else out[key] for key in self.image_keys if key in out}
        return EncodedImage(tensors, replaced[0]["replacement"], image.size)


def processor_facts(processor: Any) -> dict[str, Any]:
    """What decides the tensors and the placeholders of an image, beside the image: classes, settings, version."""
    settings = {name: value for name, value in processor.to_dict().items() if name != "chat_template"}
    image_processor = processor.image_processor
    return {
        "processor": type(processor).__name__,
        "image_processor": type(image_processor).__name__,
        "image_token": processor.image_token,
        "settings": settings | {"image_processor": image_processor.to_dict()},
        # What the processor tells its image processor at each call, over that one's own settings.
        "images_kwargs": dict(getattr(processor, "images_kwargs", {})),
        # Pixels that it makes for further encoders.
        **getattr(processor, "own_pixels", {}),
        "transformers": version("transformers"),
    }


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
