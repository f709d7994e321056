"""A row as the model will see it: for looking, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from mllm_align.contract import View
from mllm_align.data.collator import AlignCollator
from mllm_align.data.images import load_image
from mllm_align.data.schema import RESPONSES, parse_row

_LONGEST_RUN = 3


@dataclass(frozen=True)
class ImageSample:
    """One image of a view: (width, height) of the original, and the shape of each tensor that the model gets."""

    size: tuple[int, int]
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ViewSample:
    """One view of a row.

    Attributes:
        view: What is scored.
        images: The images that the prompt shows.
        prompt: The decoded prompt; a run of one token is written once, with its length.
        prompt_tokens: Its number of tokens.
        scored: The decoded tokens of the response, one by one: all of them are scored, and nothing else is. None where
            the prompt is read for an embedding.
    """

    view: View
    images: tuple[ImageSample, ...]
    prompt: str
    prompt_tokens: int
    scored: tuple[str, ...]

    def __str__(self) -> str:
        """A few lines for the terminal."""
        told = f"{len(self.scored)} scored" if self.scored else "read for an embedding"
        lines = [f"view {self.view}: {self.prompt_tokens} prompt tokens, {told}"]
        for image in self.images:
            shapes = ", ".join(f"{key} {'x'.join(map(str, shape))}" for key, shape in image.shapes.items())
            lines.append(f"  image  {image.size[0]} x {image.size[1]} pixels -> {shapes}")
        lines.append(f"  prompt {self.prompt!r}")
        if self.scored:
            lines.append(f"  scored {' '.join(map(repr, self.scored))}")
        return "\n".join(lines)


def sample_as_model_sees(
    raw: Mapping[str, Any], collator: AlignCollator, index: int | None = None
) -> list[ViewSample]:
    """Every view of a row, decoded from the very batch that training would get.

    Args:
        raw: A row.
        collator: The collator of the run.
        index: Place of the row in its dataset, for errors.

    Raises:
        DataError: If the row cannot be used.
    """
    row = parse_row(raw, index)
    batch = collator.collate([row])
    tokenizer = collator.processor.tokenizer
    samples = []
    for branch in batch.branches:
        prefix = batch.prefixes[branch.prefix]
        shown = (row.images_of(branch.view.image) or ()) if prefix.images else ()
        images = [
            ImageSample(load_image(value, row.name).size, {k: tuple(v.shape) for k, v in batch.images[place].items()})
            for value, place in zip(shown, prefix.images, strict=True)
        ]
        ids = prefix.input_ids.tolist()
        said = branch.token_ids.tolist() if branch.view.response in RESPONSES else []
        scored = tuple(tokenizer.decode([token]) for token in said)
        samples.append(ViewSample(branch.view, tuple(images), _collapsed(tokenizer, ids), len(ids), scored))
    return samples


def _collapsed(tokenizer: Any, ids: list[int]) -> str:
    """Decoded text with every long run of one token written as the token and its length."""
    pieces: list[str] = []
    rest: list[int] = []
    for token, run in groupby(ids):
        length = len(list(run))
        if length <= _LONGEST_RUN:
            rest.extend([token] * length)
            continue
        pieces += [tokenizer.decode(rest), f"{tokenizer.decode([token])}[x{length}]"]
        rest = []
    return "".join([*pieces, tokenizer.decode(rest)])
