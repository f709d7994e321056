"""What the makers of data ask of a model that speaks; which model that is, they do not know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image


@dataclass(frozen=True)
class Ask:
    """One user turn.

    Attributes:
        prompt: Its text.
        images: The pictures it shows, before the text.
        system: A system prompt, or "".
        start: Words that the answer begins with; what comes back is what follows them.
    """

    prompt: str
    images: tuple[Image.Image, ...] = ()
    system: str = ""
    start: str = ""


class Speaker(Protocol):
    """A model that answers.

    `identity` tells it apart from others that would answer otherwise (model, adapter, quantisation, decoding); it is
    part of the settings of every job that asks it.
    """

    identity: str

    def __call__(self, asks: Sequence[Ask], max_new_tokens: int) -> list[str]:
        """The answer to each; the same for the same asks, whenever it is asked."""
        ...
